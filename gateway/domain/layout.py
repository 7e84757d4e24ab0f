"""A request body seen as headers and texts: what a prompt template is laid over.

A message becomes one `header` (its role, the form of its content and every other key as canonical JSON)
and its `fields` (the texts). Two messages with equal headers differ in nothing but their texts. No text is
ever marked or escaped, so there is no character that a user could send to forge a boundary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

SYSTEM_KEYS = ("system",)
"""Top-level keys that hold a system prompt outside the message array (Anthropic's Messages API)."""

STATIC_KEYS = (
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "instructions",
    "tool_config",
    "output_format",
    "output_config",
)
"""Top-level keys that instruct the model: a template holds for one value of all of them together."""

_SEPARATOR = "\x1f"


class Unreadable(ValueError):
    """The body is not a chat request that can be taken apart and put together again."""


class Layout(NamedTuple):
    """A body taken apart: `headers[i]` and `fields[i]` belong to message i; `envelope` is all the rest."""

    bucket: str
    headers: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    envelope: dict[str, Any]


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII only, 1 and 1.0 kept apart."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def bucket_of(body: dict[str, Any]) -> str:
    """Hash of all that instructs the model outside the messages; "" when there is nothing."""
    static = {key: body[key] for key in STATIC_KEYS if key in body}
    if not static:
        return ""
    return hashlib.blake2b(canonical(static).encode(), digest_size=8).hexdigest()


def read(body: dict[str, Any]) -> Layout:
    """Take a parsed JSON body apart.

    Raises:
        Unreadable: there is no message array, or a message has a shape that no chat API knows.
    """
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        raise Unreadable("the body has no messages")
    envelope = {key: value for key, value in body.items() if key != "messages" and key not in SYSTEM_KEYS}
    pairs = [_read_system(key, body[key]) for key in SYSTEM_KEYS if key in body]
    pairs.extend(map(read_message, messages))
    headers, fields = zip(*pairs, strict=True)
    return Layout(bucket_of(body), headers, fields, envelope)


def _read_system(key: str, content: object) -> tuple[str, tuple[str, ...]]:
    # The pseudo role `^system` cannot come from a client: `read_message` refuses such roles.
    header, texts = read_message({"role": key, "content": content})
    return "^" + header, texts


def read_message(message: Any) -> tuple[str, tuple[str, ...]]:
    """One message's header and texts.

    Raises:
        Unreadable: it is no object, or its role is missing or odd.
    """
    if type(message) is not dict:
        raise Unreadable("a message is not an object")
    role, content = message.get("role"), message.get("content")
    if type(role) is not str or _SEPARATOR in role or role.startswith("^"):
        raise Unreadable("a message has no role")
    if type(content) is str and len(message) == 2:
        return f"{role}{_SEPARATOR}s{_SEPARATOR}", (_sound(content),)
    if "" in message:
        raise Unreadable("a message has a key without a name")
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    if type(content) is str:
        return _header(role, "s", rest), (_sound(content),)
    if type(content) is list:
        forms, texts, extras = _read_parts(content)
        return _header(role, "l" + forms, {**rest, "": extras} if extras else rest), texts
    return _header(role, "n", {key: value for key, value in message.items() if key != "role"}), ()


def _header(role: str, form: str, rest: dict[str, Any]) -> str:
    return f"{role}{_SEPARATOR}{form}{_SEPARATOR}{canonical(rest) if rest else ''}"


def _sound(text: str) -> str:
    # A lone surrogate cannot be stored or sent as UTF-8, so no template may hold or carry one.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unreadable("a text is not valid Unicode") from None
    return text


def _read_parts(parts: list[Any]) -> tuple[str, tuple[str, ...], list[Any]]:
    """Form letters (t text, x text with more keys, j anything else), texts, and the x parts' other keys."""
    forms, texts, extras = [], [], []
    for part in parts:
        if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
            texts.append(_sound(part["text"]))
            if len(part) == 2:
                forms.append("t")
            else:
                forms.append("x")
                extras.append({key: value for key, value in part.items() if key not in ("type", "text")})
        else:
            forms.append("j")
            texts.append(canonical(part))
    return "".join(forms), tuple(texts), extras


@lru_cache(maxsize=8192)
def parse_header(header: str) -> tuple[str, str, str]:
    """Role, content form (`s`, `n`, or `l` and one letter a part) and the other keys as JSON ("" if none)."""
    role, form, rest = header.split(_SEPARATOR, 2)
    return role, form, rest


def write_message(header: str, texts: Sequence[str]) -> dict[str, Any]:
    """The inverse of `read_message`."""
    role, form, rest = parse_header(header)
    others: dict[str, Any] = json.loads(rest) if rest else {}
    message: dict[str, Any] = {"role": role}
    if form == "s":
        message["content"] = texts[0]
    elif form != "n":
        message["content"] = _write_parts(form[1:], texts, others.pop("", []))
    message.update(others)
    return message


def _write_parts(forms: str, texts: Sequence[str], extras: Sequence[dict[str, Any]]) -> list[Any]:
    more = iter(extras)
    parts: list[Any] = []
    for form, text in zip(forms, texts, strict=True):
        if form == "j":
            parts.append(json.loads(text))
        else:
            parts.append({"type": "text", "text": text, **(next(more) if form == "x" else {})})
    return parts


def write(headers: Sequence[str], fields: Sequence[Sequence[str]], envelope: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `read`: a body equal to the original, value types included."""
    body = dict(envelope)
    messages: list[dict[str, Any]] = []
    for header, texts in zip(headers, fields, strict=True):
        message = write_message(header, texts)
        if message["role"].startswith("^"):
            body[message["role"][1:]] = message["content"]
        else:
            messages.append(message)
    body["messages"] = messages
    return body


def same(left: object, right: object) -> bool:
    """Equal in value and in type, all the way down: 1, 1.0 and True are three different values."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right

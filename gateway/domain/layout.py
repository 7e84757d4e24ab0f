"""A request body seen as headers and texts: what a prompt template is laid over.

A message becomes one `header` (its role, the form of its content and every other key as canonical JSON)
and its `fields` (the texts). Two messages with equal headers differ in nothing but their texts. No text is
ever marked or escaped, so there is no character that a user could send to forge a boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

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

MAX_MESSAGES = 1000
"""A request with more is never taken apart."""
MAX_CHARACTERS = 1 << 19
"""Characters of a request's texts, or of its turns, beyond which it is not matched."""
MAX_NESTED = 1000
"""Objects and arrays in a message's parts beyond which it is not matched; brackets in texts count, too."""

_OUTSIDE = frozenset(SYSTEM_KEYS)
_STATIC = frozenset(STATIC_KEYS)
_SEPARATOR = "\x1f"
_SHALLOW = 64


class Unreadable(ValueError):
    """The body is not a chat request that can be taken apart and put together again."""


class TooLarge(Unreadable):
    """The body has more messages or text than can be matched in time."""


class Layout(NamedTuple):
    """A body taken apart: `headers[i]` and `fields[i]` belong to message i; `envelope` is all the rest."""

    bucket: str
    headers: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    envelope: dict[str, Any]


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, 1 and 1.0 kept apart.

    Raises:
        Unreadable: it cannot be sent as JSON in UTF-8, or is nested too deeply.
    """
    return _encoded(value).decode()


def _encoded(value: object) -> bytes:
    try:
        found = msgspec.json.encode(value, order="sorted")
        if found.count(b"[") + found.count(b"{") > _SHALLOW:
            _nested(value)  # what is only just not too deep here would be too deep elsewhere
        return found
    except (UnicodeEncodeError, RecursionError, TypeError) as error:
        raise Unreadable("a value cannot be sent as JSON") from error


def bucket_of(body: dict[str, Any]) -> str:
    """Hash of all that instructs the model outside the messages; "" when there is nothing.

    Raises:
        Unreadable: it cannot be sent as JSON.
    """
    if _STATIC.isdisjoint(body):
        return ""
    static = {key: body[key] for key in STATIC_KEYS if key in body}
    return hashlib.blake2b(_encoded(static), digest_size=8).hexdigest()


def outside(body: dict[str, Any]) -> int:
    """How many system prompts the body has outside its message array."""
    return 0 if _OUTSIDE.isdisjoint(body) else sum(key in body for key in SYSTEM_KEYS)


class Reader:
    """A body taken apart only as far as it is looked at; what a live request is matched by.

    A message is read when it is asked for, once. Its texts are those of the body: nothing is copied, and
    nothing but JSON parts is encoded. Unlike `read`, it does not look whether texts are valid Unicode.
    """

    __slots__ = ("_bucket", "_messages", "_outside", "_seen", "body", "count")

    def __init__(self, body: dict[str, Any]) -> None:
        """`count`: the messages, with the system prompts outside the message array.

        Raises:
            Unreadable: there is no message array, or it is too long.
        """
        messages = body.get("messages")
        if type(messages) is not list or not messages:
            raise Unreadable("the body has no messages")
        if len(messages) > MAX_MESSAGES:
            raise TooLarge(f"it has more than {MAX_MESSAGES} messages")
        self.body = body
        self.count = len(messages) + outside(body)
        self._outside = self.count - len(messages)
        self._messages = messages
        self._bucket: str | None = None
        self._seen: dict[int, tuple[str, tuple[str, ...]]] = {}

    @property
    def bucket(self) -> str:
        """See `bucket_of`."""
        if self._bucket is None:
            self._bucket = bucket_of(self.body)
        return self._bucket

    def message(self, index: int) -> tuple[str, tuple[str, ...]]:
        """Header and texts of one message, system prompts outside the message array first.

        Raises:
            Unreadable: the message has a shape that no chat API knows.
        """
        found = self._seen.get(index)
        if found is None:
            if index >= self._outside:
                found = take_message(self._messages[index - self._outside])
            else:
                key = [key for key in SYSTEM_KEYS if key in self.body][index]
                found = _take_system(key, self.body[key])
            self._seen[index] = found
        return found

    def around(self, head: int, tail: int) -> tuple[tuple[str, ...], list[str]]:
        """Headers and texts, one after the other, of so many messages from the first and from the last on.

        Raises:
            Unreadable: one of them has a shape that no chat API knows.
        """
        headers, texts, cached = [], list[str](), self._seen
        for places in (range(head), range(self.count - tail, self.count)) if tail else (range(head),):
            for place in places:
                header, found = cached.get(place) or self.message(place)
                headers.append(header)
                texts += found
        return tuple(headers), texts

    def turns(self, first: int, last: int) -> tuple[dict[str, Any], ...]:
        """The messages from `first` to before `last`, as they are in the body.

        Raises:
            Unreadable: one of them is no message, or cannot be sent as JSON.
        """
        found = self._messages[first - self._outside : last - self._outside]
        if _check_turns(found) > MAX_CHARACTERS:
            raise TooLarge(f"its turns have more than {MAX_CHARACTERS} characters")
        return tuple(found)

    @property
    def envelope(self) -> dict[str, Any]:
        """All of the body that is no prompt."""
        envelope = dict(self.body)
        del envelope["messages"]
        if self._outside:
            for key in SYSTEM_KEYS:
                envelope.pop(key, None)
        return envelope


def _check_turns(messages: Sequence[Any]) -> int:
    """How many characters the messages have; in bytes of JSON those that are more than a role and a text."""
    size, others = 0, []
    for message in messages:
        if type(message) is not dict:
            raise Unreadable("a message is not an object")
        role, content = message.get("role"), message.get("content")
        if len(message) == 2 and role in _PLAIN and type(content) is str:
            size += len(sound(content))
        elif type(role) is not str or role.startswith("^"):
            raise Unreadable("a message has no role")
        else:
            others.append(message)
    return size + len(_nested(others)) if others else size


def _nested(value: object) -> bytes:
    """The value's JSON in as many arrays as it may be put into elsewhere."""
    for _ in range(_SHALLOW):
        value = [value]
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, RecursionError, TypeError) as error:
        raise Unreadable("a value cannot be sent as JSON") from error


def read(body: dict[str, Any]) -> Layout:
    """Take a parsed JSON body apart.

    Raises:
        Unreadable: there is no message array, or a message has a shape that no chat API knows.
    """
    reader = Reader(body)
    headers, fields = zip(*map(reader.message, range(reader.count)), strict=True)
    for texts in fields:
        for text in texts:
            sound(text)
    return Layout(reader.bucket, headers, fields, reader.envelope)


def read_message(message: Any) -> tuple[str, tuple[str, ...]]:
    """One message's header and texts.

    Raises:
        Unreadable: it is no object, its role is missing or odd, or a text is not valid Unicode.
    """
    header, texts = take_message(message)
    return header, tuple(map(sound, texts))


def _take_system(key: str, content: object) -> tuple[str, tuple[str, ...]]:
    # The pseudo role `^system` cannot come from a client: `take_message` refuses such roles.
    header, texts = take_message({"role": key, "content": content})
    return "^" + header, texts


def take_message(message: Any) -> tuple[str, tuple[str, ...]]:
    """As `read_message`, whether or not the texts are valid Unicode."""
    if type(message) is not dict:
        raise Unreadable("a message is not an object")
    role, content = message.get("role"), message.get("content")
    if type(content) is str and len(message) == 2 and type(role) is str and role in _PLAIN:
        return _PLAIN[role], (content,)
    if type(role) is not str or _SEPARATOR in role or role.startswith("^"):
        raise Unreadable("a message has no role")
    if type(content) is str and len(message) == 2:
        return _header(role, "s", {}), (content,)
    if "" in message:
        raise Unreadable("a message has a key without a name")
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    if type(content) is str:
        return _header(role, "s", rest), (content,)
    if type(content) is list:
        forms, texts, extras = _read_parts(content)
        return _header(role, "l" + forms, {**rest, "": extras} if extras else rest), texts
    return _header(role, "n", {key: value for key, value in message.items() if key != "role"}), ()


def _header(role: str, form: str, rest: dict[str, Any]) -> str:
    return f"{role}{_SEPARATOR}{form}{_SEPARATOR}{canonical(rest) if rest else ''}"


_PLAIN = {role: _header(role, "s", {}) for role in ("system", "developer", "user", "assistant", "tool", "function")}


def sound(text: str) -> str:
    """The text itself. A lone surrogate cannot be stored or sent as UTF-8: no template holds or carries one.

    Raises:
        Unreadable: it has one.
    """
    if not text.isascii():
        try:
            text.encode("utf-16-le")  # of all encodings that refuse surrogates the quickest
        except UnicodeEncodeError:
            raise Unreadable("a text is not valid Unicode") from None
    return text


def _read_parts(parts: list[Any]) -> tuple[str, tuple[str, ...], list[Any]]:
    """Form letters (t text, x text with more keys, j anything else), texts, and the x parts' other keys."""
    forms, texts, extras, nested = [], [], [], 0
    for part in parts:
        if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
            texts.append(part["text"])
            if len(part) == 2:
                forms.append("t")
            else:
                forms.append("x")
                extras.append({key: value for key, value in part.items() if key not in ("type", "text")})
        else:
            forms.append("j")
            texts.append(canonical(part))
            nested += texts[-1].count("[") + texts[-1].count("{")
            if nested > MAX_NESTED:
                raise TooLarge(f"a message has JSON of more than {MAX_NESTED} objects and arrays")
    return "".join(forms), tuple(texts), extras


@lru_cache(maxsize=8192)
def parse_header(header: str) -> tuple[str, str, str]:
    """Role, content form (`s`, `n`, or `l` and one letter a part) and the other keys as JSON ("" if none)."""
    role, form, rest = header.split(_SEPARATOR, 2)
    return role, form, rest


def write_message(header: str, texts: Sequence[str]) -> dict[str, Any]:
    """The inverse of `read_message`."""
    role, form, rest = parse_header(header)
    others: dict[str, Any] = msgspec.json.decode(rest) if rest else {}
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
            parts.append(msgspec.json.decode(text))
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
    """Equal in value and in type, all the way down and however deep: 1, 1.0 and True are three values."""
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        if one is other:
            continue
        if type(one) is not type(other):
            return False
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            pairs += [(value, other[key]) for key, value in one.items()]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif one != other:
            return False
    return True

"""Personal data and secrets, replaced on the copy that is trained on; what is recorded stays as it is.

What is found is replaced by something of the same form: letters by letters, digits by digits, an address by one of
`example.com`. Live requests come unmasked, so a row must look like them; and a value that stands in the input and
in the answer is replaced by the same in both, so that copying it is still learnt. A replacement is one of 1,000,
chosen by a hash: nobody finds the value from it.

Only what can be told by its form is found: no names, no postal addresses.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from gateway.domain.template import Inputs

# Formats after the vendors' own documents of their keys' prefixes, RFC 7519 (JWT), RFC 7468 (PEM), ISO 13616
# (IBAN), ISO/IEC 7812 (cards), ITU-T E.164 (telephone numbers: 15 digits at most).
_PATTERNS = {
    "secret": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
        r"|\b(?:sk|pk|rk)[-_](?:[a-zA-Z0-9]+[-_]){0,4}[a-zA-Z0-9_-]{16,}|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{40,}"
        r"|\bglpat-[\w-]{20,}|\bxox[abeoprs]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bhf_[a-zA-Z0-9]{30,}"
        r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"
    ),
    "password": re.compile(
        r"(?i)\bbearer [\w.~+/-]{20,}=*"
        r"|\b(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)\b\s{0,2}[=:]\s{0,2}[^\s\"',;]{6,}"
    ),
    "email": re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"),
    "card": re.compile(
        r"(?<![\d.-])(?<![A-Z]{2}\d\d )"
        r"(?:[3-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3[47]\d\d([ -]?)\d{6}\2\d{5})(?![\d-])"
    ),
    "phone": re.compile(
        r"(?<![\w.+])(?:\+\d{1,3}[ .-]?)?\(\d{2,5}\)[ .-]?\d{2,5}(?:[ .-]?\d{2,5}){1,3}(?![\w-])"
        r"|(?<![\w+])\+\d{1,3}(?:[ ./-]?\d{2,5}){2,5}(?![\w-])|(?<![\w.+/-])\d{3}([ .-])\d{3}\1\d{4}(?![\w-])"
    ),
    "ip": re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.|(?![\w.]*\d))){4}(?<=\d)"),
    "ssn": re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"),
}
KINDS = tuple(_PATTERNS)
"""What is looked for, in this order; of two that overlap, the earlier one counts."""
_KEYS = ("sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
         "xox", "AKIA", "ASIA", "AIza", "hf_", "eyJ", "-----BEGIN ")  # fmt: skip
_SHORTEST_KEY = 15
_NAMES = ("bearer ", "passw", "pwd", "secret", "key", "token")
_LONG_NUMBER = re.compile(r"[0-9](?:[ ()./-]{0,2}[0-9]){7}")
_DOTTED = re.compile(r"[0-9](?:\.[0-9]{1,3}){2}\.[0-9]")


def scrubbed(inputs: Inputs, answer: str, counts: Counter[str]) -> tuple[Inputs, str]:
    """The inputs and the answer with all that was found replaced; each find is counted in `counts` by its kind.

    Parts of a message that are no text (pictures, files) are left as they are.
    """
    slots = inputs.template.slots
    pairs = zip(slots, inputs.values, strict=True)
    values = tuple(value if slot.kind == "part" else scrub(value, counts) for slot, value in pairs)
    turns = tuple(_message(turn, counts) for turn in inputs.turns)
    return msgspec.structs.replace(inputs, values=values, turns=turns), scrub(answer, counts)


def _message(turn: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """A turn with its texts replaced, those of its parts and the arguments of its tool calls included."""
    clean = {**turn}
    content = turn.get("content")
    if isinstance(content, str):
        clean["content"] = scrub(content, counts)
    elif isinstance(content, list):
        clean["content"] = [_part(part, counts) for part in content]
    calls = turn.get("tool_calls")
    if isinstance(calls, list):
        clean["tool_calls"] = [_call(call, counts) for call in calls]
    return clean


def _part(part: Any, counts: Counter[str]) -> Any:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part | {"text": scrub(part["text"], counts)}
    return part


def _call(call: Any, counts: Counter[str]) -> Any:
    said = call.get("function") if isinstance(call, dict) else None
    if isinstance(said, dict) and isinstance(said.get("arguments"), str):
        return call | {"function": said | {"arguments": scrub(said["arguments"], counts)}}
    return call


def scrub(text: str, counts: Counter[str]) -> str:
    """The text with all that was found replaced."""
    found: list[tuple[int, int, str]] = []
    for kind in _possible(text):
        check = _CHECKS.get(kind)
        for match in _PATTERNS[kind].finditer(text):
            start, end = match.span()
            if (check is None or check(match[0])) and all(end <= a or start >= b for a, b, _ in found):
                found.append((start, end, kind))
    if not found:
        return text
    pieces, behind = [], 0
    for start, end, kind in sorted(found):
        pieces += [text[behind:start], _REPLACED.get(kind, _alike)(text[start:end])]
        counts[kind] += 1
        behind = end
    return "".join([*pieces, text[behind:]])


def _possible(text: str) -> Iterator[str]:
    """The kinds that there may be: looking for a few letters costs a tenth of looking for the pattern."""
    has_long_word = len(max(text.split(), key=len, default="")) >= _SHORTEST_KEY
    if has_long_word and any(key in text for key in _KEYS):
        yield "secret"
    if has_long_word or ":" in text or "=" in text:
        lower = text.lower()
        if any(name in lower for name in _NAMES):
            yield "password"
    if "@" in text:
        yield "email"
    if _LONG_NUMBER.search(text):
        yield from ("iban", "card", "phone", "ssn")
    if text.count(".") > 2 and _DOTTED.search(text):
        yield "ip"


# --- is it one? --------------------------------------------------------------------------------------------


def _is_card(value: str) -> bool:
    """Whether the last digit fits the others (Luhn, ISO/IEC 7812-1)."""
    digits = [int(letter) for letter in reversed(value) if letter.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(value: str) -> bool:
    """Whether its two check digits fit (ISO 7064, MOD 97-10)."""
    bare = value.replace(" ", "")
    return 15 <= len(bare) <= 34 and int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def _is_phone(value: str) -> bool:
    return 8 <= sum(letter.isdigit() for letter in value) <= 15


_CHECKS: dict[str, Callable[[str], bool]] = {"card": _is_card, "iban": _is_iban, "phone": _is_phone}


# --- what stands there instead -------------------------------------------------------------------------------


def _number(value: str) -> int:
    """One of 1,000, the same for the same value."""
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % 1000


def _alike(value: str) -> str:
    """Digits for digits and letters for letters, in the same case; all else stays. The first digit is never 0."""
    stream = hashlib.shake_128(f"unprompt {_number(value)}".encode()).digest(len(value))
    out, first = [], True
    for letter, byte in zip(value, stream, strict=True):
        if letter.isdigit():
            out.append(str(byte % 9 + 1 if first else byte % 10))
            first = False
        elif letter.isascii() and letter.isalpha():
            out.append(chr((97 if letter.islower() else 65) + byte % 26))
        else:
            out.append(letter)
    return "".join(out)


def _email(value: str) -> str:
    return f"person{_number(value)}@example.com"  # RFC 2606


def _ip(value: str) -> str:
    return f"192.0.2.{_number(value) % 254 + 1}"  # RFC 5737


_PREFIX = re.compile(
    r"(?i)-----BEGIN [A-Z ]*-----|(?:sk|pk|rk)[-_]|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|a[ks]ia|aiza|hf_|eyj"
    r"|bearer |(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)\s{0,2}[=:]\s{0,2}"
)


def _secret(value: str) -> str:
    """What tells its kind stays; so does the end of a PEM block."""
    head = _PREFIX.match(value)
    behind = head.end() if head else 0
    tail = value.find("-----END ", behind)
    end = len(value) if tail < 0 else tail
    return value[:behind] + _alike(value[behind:end]) + value[end:]


_REPLACED: dict[str, Callable[[str], str]] = {
    "email": _email, "ip": _ip, "secret": _secret, "password": _secret
}  # fmt: skip

"""What changed between two texts, by lines and then by words, for people to read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_WORDS = 4000
"""Blocks of more words than this are shown as lines: comparing word by word takes the square of their number."""
_CONTEXT = 48
_UNSEEN = str.maketrans({" ": "·", "\t": "→", "\r": "␍", "\n": "↵"})

Kind = Literal["same", "gone", "new", "skipped"]


class Piece(NamedTuple):
    """A stretch of text that is in both texts, in the old one only, or in the new one only; `skipped` stands for
    lines that are in both and are left out."""

    kind: Kind
    text: str


def changes(old: str, new: str) -> list[list[Piece]]:
    """The lines that differ, each as pieces; what is the same is shortened to what stands around a change."""
    before, after = old.split("\n"), new.split("\n")
    lines: list[list[Piece]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            lines += _same(before[a:b])
        elif kind == "replace":
            lines += _replaced("\n".join(before[a:b]), "\n".join(after[c:d]))
        else:
            lines += [[Piece("gone", _seen(line))] for line in before[a:b]]
            lines += [[Piece("new", _seen(line))] for line in after[c:d]]
    return lines if any(piece.kind in ("gone", "new") for line in lines for piece in line) else []


def plain(lines: Sequence[Sequence[Piece]]) -> str:
    """The changes as text: `[-gone-]`, `{+new+}`."""
    around = {"gone": "[-{}-]", "new": "{{+{}+}}", "same": "{}", "skipped": "{}"}
    return "\n".join("".join(around[piece.kind].format(piece.text) for piece in line) for line in lines)


def shorten(text: str, most: int) -> str:
    """The text where it has at most so many characters (or hardly more); else its beginning and end, and how many
    characters are left out between them."""
    if len(text) <= most + 24:
        return text
    head = most * 2 // 3
    return f"{text[:head]}… ({len(text) - most:,} more) …{text[len(text) - (most - head) :]}"


def _same(lines: Sequence[str]) -> Iterator[list[Piece]]:
    """A line next to each change; how many are left out between them."""
    for line in lines[:1]:
        yield [Piece("same", shorten(line, 2 * _CONTEXT))]
    if len(lines) > 2:
        yield [Piece("skipped", f"… {len(lines) - 2} lines alike")]
    for line in lines[1:][-1:]:
        yield [Piece("same", shorten(line, 2 * _CONTEXT))]


def _replaced(old: str, new: str) -> Iterator[list[Piece]]:
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    if max(len(before), len(after)) > _MOST_WORDS:
        yield from ([Piece("gone", line)] for line in old.split("\n"))
        yield from ([Piece("new", line)] for line in new.split("\n"))
        return
    line: list[Piece] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            line.append(Piece("same", shorten("".join(before[a:b]), 2 * _CONTEXT).replace("\n", "↵")))
            continue
        for side, text in (("gone", "".join(before[a:b])), ("new", "".join(after[c:d]))):
            if text:
                line.append(Piece("gone" if side == "gone" else "new", _seen(text)))
    yield line


def _seen(text: str) -> str:
    """White space that nobody would see, seen: all of it where there is nothing else, and that of line ends."""
    if not text.strip():
        return text.translate(_UNSEEN) or "↵"
    return re.sub(r"[ \t\r]+(?=\n|$)|\n", lambda found: found[0].translate(_UNSEEN), text)

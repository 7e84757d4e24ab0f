"""Answers on the wire: texts cut into deltas, events written down in every way that a parser must read."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from gateway import providers, sse
from gateway.providers import Provider
from gateway.providers.answers import Answer

OPENAI, ANTHROPIC, GEMINI = (providers.load(name) for name in ("openai", "anthropic", "gemini"))

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "[DONE]", "data: x\n\n", "é✓ 🙂 漢字", '{"a": [1, "}"]}', "\r\n\r\n"]
)
WORD = st.text("abcxyz_-09", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(WORD, st.integers() | TEXT | st.lists(st.booleans(), max_size=2), max_size=3)


class Cuts:
    """Cuts texts and lists into the deltas of a stream, as Hypothesis draws them."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def __call__(self, whole: Any) -> list[Any]:
        places = sorted(self._data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
        bounds = [0, *places, len(whole)]
        return [whole[start:end] for start, end in pairwise(bounds)]

    def shuffled(self, lanes: list[list[Any]]) -> list[Any]:
        """The items of several lanes, each lane in its order, the lanes mixed."""
        lanes, out = [list(lane) for lane in lanes if lane], []
        while lanes:
            lane = lanes[self._data.draw(st.integers(0, len(lanes) - 1))]
            out.append(lane.pop(0))
            lanes = [lane for lane in lanes if lane]
        return out


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
PREFIXES = st.sampled_from([b"data: ", b"data:"])
GAPS = st.sampled_from([b"", b": still here", b"retry: 10", b"id: 7", b": a\n: b"])


@st.composite
def ways_to_write(draw: st.DrawFn) -> Any:
    """A way to write events down: line ends, comments, mark, [DONE] or not, with or without its last blank line."""
    end, prefix, gap = draw(ENDS), draw(PREFIXES), draw(GAPS)
    done, mark, is_pretty = draw(st.integers(0, 2)), draw(st.booleans()), draw(st.booleans())
    has_last_line, ascii_only = draw(st.booleans()), draw(st.booleans())

    def write(items: list[Any], *, named: bool = False) -> bytes:
        out = b"\xef\xbb\xbf" if mark else b""
        texts = [
            json.dumps(item, ensure_ascii=ascii_only, indent=1 if is_pretty else None).encode() for item in items
        ]
        names = [str(item.get("type")).encode() if named else b"" for item in items]
        for text, name in [*zip(texts, names, strict=True), *[(b"[DONE]", b"")] * done]:
            lines = ([b"event: " + name] if name else []) + [prefix + line for line in text.split(b"\n")]
            out += end.join([*lines, b"", b""]) + (gap.replace(b"\n", end) + end + end if gap else b"")
        return out if has_last_line else out.rstrip(b"\r\n")

    return write


def same(provider: Provider, whole: Any, stream: bytes) -> Answer:
    """The answer, checked to be the same from both."""
    expected = provider.read_answer(json.dumps(whole).encode(), streamed=False)
    assert expected is not None
    assert provider.read_answer(stream, streamed=True) == expected
    return expected


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The events' data of a stream that is read piece by piece."""
    parser, out, at = sse.EventParser(), [], 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        out += parser.feed(stream[at:cut])
        at = cut
    return [event.data for event in out + parser.close()]

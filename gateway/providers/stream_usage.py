"""Token usage of OpenAI-shaped streams: asked for on the client's behalf, and taken out of the answer again.

A stream of chat completions or completions carries its usage only where the request has
`"stream_options": {"include_usage": true}`. Then every chunk has `"usage": null`, and one more chunk, with
`"choices": []` and the usage, comes before `[DONE]` (OpenAI API reference, "stream_options"). A client that
did not ask gets neither.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

StreamUsage = Literal["auto", "ask", "leave"]
"""A provider's setting: ask hosts that are known to support it, ask always, never ask."""

LARGEST_EDIT = 1 << 20
"""Bytes of the largest request that is edited: reading a larger one would hold up everybody else's."""

_LONGEST_LINE = 1 << 16  # a usage chunk has about 1 KB; longer lines leave as they come
_KNOWN_HOSTS = ("api.openai.com", "api.deepseek.com")  # documented; Mistral refuses it, others send usage unasked
_PATHS = ("/chat/completions", "/completions")
_ASK = b'"stream_options":{"include_usage":true},'
_ESCAPED_LETTER = re.compile(rb"\\u00(?:6|7[0-9aA]|5[fF])")  # no encoder writes one, and it could spell a key
_OPTIONS = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*(?:null|\{[ \t\r\n]*(\}?))')


class _Options(msgspec.Struct):
    include_usage: Any = msgspec.UNSET


class _Request(msgspec.Struct):
    stream: Any = None
    stream_options: _Options | msgspec.UnsetType | None = msgspec.UNSET


class _Object(msgspec.Struct):
    """Any JSON object, skipped."""


class _Chunk(msgspec.Struct):
    choices: list[_Object] | None = None
    usage: _Object | msgspec.UnsetType | None = msgspec.UNSET


_request = msgspec.json.Decoder(_Request)
_chunk = msgspec.json.Decoder(_Chunk)


def may_ask(setting: StreamUsage, host: str, path: str) -> bool:
    """Whether a stream from this host (name only) and path may be asked for its usage."""
    if setting == "leave" or not path.endswith(_PATHS):
        return False
    return setting == "ask" or any(host == known or host.endswith("." + known) for known in _KNOWN_HOSTS)


def ask_for_usage(body: bytes) -> bytes | None:
    """The request with the question for usage written into it, every other byte as it was.

    None where nothing is to be asked: it is no stream, its client speaks of `include_usage` itself (whatever
    it says), it is over `LARGEST_EDIT`, or two readers of the same bytes could disagree about its keys.
    """
    if len(body) > LARGEST_EDIT:
        return None
    try:
        read = _request.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if read.stream is not True or body.count(b'"stream"') != 1:
        return None
    if b"\\u00" in body and _ESCAPED_LETTER.search(body):
        return None
    if read.stream_options is msgspec.UNSET:
        start = body.index(b"{") + 1
        return body[:start] + _ASK + body[start:]
    if read.stream_options is not None and read.stream_options.include_usage is not msgspec.UNSET:
        return None
    return _ask_among(body)


def _ask_among(body: bytes) -> bytes | None:
    """The same where the request has stream options, or null for them."""
    found = _OPTIONS.search(body)
    if found is None or body.count(b'"stream_options"') != 1:
        return None
    if found[1] is None:
        return body[: found.end() - 4] + b'{"include_usage":true}' + body[found.end() :]
    start = body.index(b"{", found.start()) + 1
    return body[:start] + b'"include_usage":true' + (b"" if found[1] else b",") + body[start:]


_LINE_END = re.compile(rb"\r\n|\n|\r")
_USUAL_NULL = b',"usage":null'
_NULL = re.compile(rb'"usage"[ \t]*:[ \t]*null')


class UsageTaker:
    """Takes out of a stream what `ask_for_usage` put into it, as the bytes pass.

    `feed` gives what may leave at once: every byte as it came, but without the chunk that has usage and no
    choices, and without `"usage": null` in the others. Only a line that is not yet whole is held back, up to
    64 KB. What can't be undone: spaces around a `"usage": null` beyond those that serialisers put after a
    comma, and a usage chunk written over several `data:` lines (nobody does), which passes.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._in_long_line = False  # the line's beginning has left already
        self._in_event = False  # the event's earlier lines have left already
        self._drops_blank = False  # the event was dropped whole, so its blank line goes too
        self._after_cr = False  # the last line ended in CR at a piece's end; its LF may follow
        self._kept = True  # whether the last line left

    def feed(self, piece: bytes) -> bytes:
        """What leaves for the client now, perhaps nothing."""
        if self._rest or self._in_event or self._drops_blank or self._in_long_line or self._after_cr:
            return self._feed(piece)
        if piece[-2:] == b"\n\n":  # whole events, as servers flush them
            if not piece.partition(b'"usage"')[1]:  # cheaper than `in`, as in `Provider.ends_stream`
                return piece
            at = piece.rfind(_USUAL_NULL)
            if at > 0 and _is_one_event(piece) and _ends_chunk(piece[at + len(_USUAL_NULL) : -2]):
                return piece[:at] + piece[at + len(_USUAL_NULL) :]
        return self._feed(piece)

    def close(self) -> bytes:
        """What is left when the stream has ended within a line."""
        rest, self._rest = self._rest, b""
        taken = _taken(rest) if b'"usage"' in rest else rest
        return taken or b""

    def _feed(self, piece: bytes) -> bytes:
        out = []
        if self._after_cr and piece:
            self._after_cr = False
            if piece[:1] == b"\n":
                out.append(b"\n" if self._kept else b"")
                piece = piece[1:]
        data, self._rest = self._rest + piece, b""
        *lines, rest = _lines(data)
        out += [self._line(line, end) for line, end in lines]
        self._after_cr = self._after_cr or (data[-1:] == b"\r")
        out.append(self._hold(rest[0]))
        return b"".join(out)

    def _hold(self, rest: bytes) -> bytes:
        """Keep the beginning of a line, unless it is too long for a usage chunk."""
        if self._in_long_line or len(rest) > _LONGEST_LINE:
            self._in_long_line = True
            return rest
        self._rest = rest
        return b""

    def _line(self, line: bytes, end: bytes) -> bytes:
        """A whole line as it leaves."""
        dropped, self._drops_blank = self._drops_blank, False
        if not line and not self._in_long_line:
            self._in_event, self._kept = False, not dropped
            return b"" if dropped else end
        taken = _taken(line) if b'"usage"' in line and not self._in_long_line else line
        self._in_long_line, self._kept = False, taken is not None
        if taken is None:
            self._drops_blank = not self._in_event
            return b""
        self._in_event = True
        return taken + end


def _is_one_event(piece: bytes) -> bool:
    """Whether a piece that ends in a blank line is one data line."""
    return piece[:5] == b"data:" and piece.count(b"\n") == 2 and b"\r" not in piece


def _ends_chunk(tail: bytes) -> bool:
    """Whether what follows a key's value in an object ends the outermost one: no bracket but the last."""
    closes = tail.find(b"}") == len(tail) - 1
    return closes and not (b"{" in tail or b"[" in tail or b"]" in tail)


def _lines(data: bytes) -> list[tuple[bytes, bytes]]:
    """Each line and its end; the last one has none yet."""
    if b"\r" not in data:
        return [(line, b"\n") for line in data.split(b"\n")]
    lines, start = [], 0
    for end in _LINE_END.finditer(data):
        lines.append((data[start : end.start()], end[0]))
        start = end.end()
    return [*lines, (data[start:], b"")]


def _taken(line: bytes) -> bytes | None:
    """A line that speaks of usage as the client would have got it; None: not at all."""
    chunk = _read(line)
    if chunk is None or chunk.usage is msgspec.UNSET:
        return line
    if chunk.usage is not None:
        return line if chunk.choices or chunk.choices is None else None
    return _without_null(line)


def _read(line: bytes) -> _Chunk | None:
    """The chunk in a data line; None where the line has none."""
    if line[:5] != b"data:" and line[:8] != b"\xef\xbb\xbfdata:":
        return None
    try:
        return _chunk.decode(line[line.index(b"{") :])
    except (ValueError, RecursionError):  # msgspec's and UnicodeDecodeError are ValueErrors
        return None


def _without_null(line: bytes) -> bytes:
    """The line without its chunk's own `"usage": null`; one that is nested in it stays."""
    only, position = line.count(b'"usage"') == 1, len(line)
    while (position := line.rfind(b'"usage"', 0, position)) >= 0:
        found = _NULL.match(line, position)
        if found is None:
            continue
        head, tail = line[:position].rstrip(b" \t"), line[found.end() :]
        if head[-1:] == b",":
            without = head[:-1] + tail
        else:
            without = line[:position] + tail.lstrip(b" \t").removeprefix(b",").lstrip(b" \t")
        left = None if only else _read(without)
        if only or (left is not None and left.usage is msgspec.UNSET):
            return without
    return line

"""An upstream whose models are asked how sure they are, where a route says from when on they may answer."""

from __future__ import annotations

import re

import msgspec

from gateway.errors import Abstained, UpstreamError
from gateway.providers.asked_whole import Form, ask_whole, give_back, sure_of
from gateway.upstreams import Call, Head, Outgoing, Sink, Upstream

LARGEST = 2 << 20
"""Bytes of the largest answer that is looked at, since that holds up everybody else (about 100 ms); a larger one
counts as not sure. A token takes about 0.2 KB."""
_NOT_ASKED_FOR = re.compile(rb"\r\n(?:accept-encoding|accept):[^\r\n]*", re.IGNORECASE)
_MADE_ANEW = (b"content-length:", b"content-type:")


class SelectiveUpstream:
    """Passes requests on as they are, but those with a `min_confidence`: their answer is awaited whole, and unless
    its log-probabilities say that the model was as sure as that, the sink hears `Abstained`, and nothing else."""

    def __init__(self, inner: Upstream) -> None:
        self.name, self.inner = inner.name, inner
        self._send = inner.send

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> Call:
        if request.min_confidence <= 0:
            return self._send(request, sink, connect_timeout=connect_timeout)
        body, form = ask_whole(request.body or b"")
        asked = msgspec.structs.replace(
            request,
            body=body,
            length=len(body),
            lines=_NOT_ASKED_FOR.sub(b"", request.lines),
        )
        looking = _Looking(request, form, sink)
        looking.call = self._send(asked, looking, connect_timeout=connect_timeout)
        return looking.call

    async def close(self) -> None:
        await self.inner.close()


class _Looking:
    """The sink that waits for a whole answer and looks at it."""

    def __init__(self, request: Outgoing, form: Form, sink: Sink) -> None:
        self._request, self._form, self._sink = request, form, sink
        self.call: Call | None = None
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_over = False

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        if self._is_over:
            return
        self._head = head or self._head
        if self._head is not None and self._head.status != 200:  # what to do about that is not for us to say
            self._sink.on_data(head, piece, done)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > LARGEST:
            if self.call is not None:
                self.call.abort()
            self.on_failure(Abstained(f"the answer of {self._request.model} has more than {LARGEST >> 20} MiB"))
        elif done and self._head is not None:
            self._is_over = True
            self._judge(self._head, b"".join(self._pieces))

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        self.on_data(None, piece, False)

    def on_interim(self, head: Head) -> None:
        """Not passed on: the answer itself may come from somebody else."""

    def on_failure(self, error: UpstreamError) -> None:
        if not self._is_over:
            self._is_over = True
            self._sink.on_failure(error)

    def on_upload(self, ready: bool) -> None:
        self._sink.on_upload(ready)

    def _judge(self, head: Head, body: bytes) -> None:
        sure, least = sure_of(body), self._request.min_confidence
        if sure is None or sure < least:
            told = "does not say how sure it is" if sure is None else f"is {sure:.4g} sure"
            self._sink.on_failure(Abstained(f"{self._request.model} {told}, {least:.4g} is asked for"))
            return
        try:
            given = self._given(head, body)
        except ValueError as error:
            self._sink.on_failure(UpstreamError(f"{self._request.model}: {error}"))
        else:
            self._sink.on_data(*given, True)

    def _given(self, head: Head, body: bytes) -> tuple[Head, bytes]:
        """The answer in the client's form."""
        out = give_back(body, self._form)
        lines = [line for line in head.raw.split(b"\r\n")[1:] if not line.lower().startswith(_MADE_ANEW)]
        headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        if self._form.streamed:
            headers.insert(0, (b"Content-Type", b"text/event-stream; charset=utf-8"))
            return Head.of(200, b"OK", headers, None), out
        headers[:0] = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(out))]
        return Head.of(200, b"OK", headers, len(out)), out

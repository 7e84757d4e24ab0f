"""Records exchanges: `begin` before the upstream is called, `end` before the last byte leaves."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gateway.domain.exchange import Begin, End
from gateway.errors import StoreError, StoreUnavailable
from gateway.proxy.secrets import any_stands_in, blank_text
from gateway.stores.journal import JournalWriter, Record, Unencodable, encode, encode_parts
from gateway.ticks import QUARTER_SECONDS, tick
from gateway.upstreams.outbox import Outbox

log = logging.getLogger(__name__)

SPILL_BYTES = 256 * 1024 * 1024
RECOVER_BYTES = 4 * 1024 * 1024
"""How much of the spill is written at once: the relay waits meanwhile."""

KEPT_HEADERS = frozenset({
    b"content-type", b"content-encoding", b"user-agent", b"accept", b"retry-after",
    b"x-request-id", b"request-id", b"openai-processing-ms", b"openai-version", b"anthropic-version",
})  # fmt: skip
"""Only these headers are recorded: an allow-list, so that no key is ever kept by accident."""

RESYNC_SECONDS = 1.0
"""After a sync that failed the next one comes no sooner."""

LARGE = 1024 * 1024
"""Bodies from so many bytes on are written down by a thread, since everybody else would have to wait."""


class Capture:
    """Appends to the journal. When that fails: `fail_open` keeps records in memory and writes them when it
    can again, in order; `fail_closed` refuses the request before its upstream is called.

    `large` is the journal of large bodies: each is written by a thread, before the records that go with it.

    `count(result)` is told of each record: `written`, `spooled` (kept in memory), `dropped` (memory full),
    `poison` (it cannot be written down at all), and with `unsynced` of each time that the journal could not be
    forced to the disk.

    `outbox`: the records of one turn of the event loop are written at once, before anything leaves from there. With
    `fail_closed` each is written when it comes, since its request must not be served without it.
    """

    def __init__(
        self,
        journal: JournalWriter,
        large: JournalWriter,
        *,
        fail_closed: bool,
        count: Callable[[str], None],
        sync_ms: int,
        outbox: Outbox | None = None,
    ) -> None:
        self._journal, self._large = journal, large
        self._outbox = None if fail_closed else outbox
        self._waiting: list[bytes] = []
        self._thread = ThreadPoolExecutor(1, "large-bodies")
        self._fail_closed = fail_closed
        self._count = count
        self._sync_seconds = sync_ms / 1000
        self._spilled: deque[bytes] = deque()
        self._spilled_bytes = 0
        self._unforced: str | None = None

    def begin(self, record: Begin) -> None:
        """
        Raises:
            StoreUnavailable: it could not be written, and the operator chose `fail_closed`.
        """
        try:
            self._append(record)
        except StoreError as error:
            if self._fail_closed:
                raise _unavailable(error) from error
            self._spill(encode(record), error)

    def note(self, record: Begin) -> bool:
        """The same for a request that is refused anyway; whether it is kept."""
        try:
            self.begin(record)
        except StoreUnavailable:
            return False
        return True

    def end(self, record: End) -> None:
        """Never raises: the client's answer is not held hostage."""
        try:
            self._append(record)
        except StoreError as error:
            self._spill(encode(record), error)

    def aside(self, make: Callable[[], Record], then: Callable[[Record | StoreUnavailable], None]) -> None:
        """Make a record and write it down in the thread, then call `then` in the event loop's, whatever happens."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, self._write_aside, make)
        future.add_done_callback(lambda done: self._written_aside(done.result(), then))

    def _write_aside(self, make: Callable[[], Record]) -> tuple[Record | None, StoreError | None]:
        try:
            record = make()
        except Exception as error:  # a fault of ours; whoever waits for the record must hear of it
            log.exception("a large record could not be made")
            return None, StoreError(str(error))
        try:
            self._large.append_parts(encode_parts(record))
        except StoreError as error:
            return record, error
        return record, None

    def _written_aside(
        self, outcome: tuple[Record | None, StoreError | None], then: Callable[[Record | StoreUnavailable], None]
    ) -> None:
        record, error = outcome
        if record is None:
            then(_unavailable(error or StoreError("no record")))
            return
        if isinstance(error, Unencodable):
            self._count("poison")
            log.error("exchange %s cannot be written down: %s", record.id, error)
        elif error is not None and self._fail_closed and isinstance(record, Begin):
            then(_unavailable(error))
            return
        elif error is not None:
            self._spill(encode(record), error)
        else:
            self._count("written")
        then(record)

    def _append(self, record: Record) -> None:
        try:
            encoded = encode(record)
        except Unencodable as error:
            self._count("poison")
            log.error("exchange %s cannot be written down: %s", record.id, error)
            return
        if self._outbox is None:
            self._write(encoded)
            return
        if not self._waiting:
            self._outbox.before(self.flush)
        self._waiting.append(encoded)

    def _write(self, encoded: bytes) -> None:
        if self._spilled and not self.recover():  # behind what came before it
            raise StoreError("earlier records are still waiting to be written")
        self._journal.append_encoded(encoded)
        self._count("written")

    def flush(self) -> None:
        """Write the records of this turn. Never raises: it runs with `fail_open` only."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = []
        if not self._spilled:
            try:
                self._journal.append_encoded(waiting[0] if len(waiting) == 1 else b"".join(waiting))
            except StoreError:  # perhaps some of them fit
                pass
            else:
                for _ in waiting:
                    self._count("written")
                return
        for encoded in waiting:
            try:
                self._write(encoded)
            except StoreError as error:
                self._spill(encoded, error)

    def _spill(self, encoded: bytes, error: StoreError) -> None:
        if self._spilled_bytes + len(encoded) > SPILL_BYTES:
            self._count("dropped")
            log.error("a record of %d bytes is lost: %s, and the spill is full", len(encoded), error)
            return
        if not self._spilled:
            log.error("recording fails, keeping records in memory: %s", error)
        self._spilled.append(encoded)
        self._spilled_bytes += len(encoded)
        self._count("spooled")

    @property
    def trouble(self) -> str | None:
        """Why a record may get lost, for `/readyz`; None where nothing is wrong."""
        if self._spilled:
            return "the journal cannot be written"
        return self._unforced and f"the journal cannot be forced to the disk: {self._unforced}"

    @property
    def healthy(self) -> bool:
        """Whether everything so far is in the journal, and the last sync succeeded."""
        return self.trouble is None

    def recover(self) -> bool:
        """Try to write what was spilled, oldest first and so much at once; whether nothing is left."""
        written = 0
        while self._spilled and written < RECOVER_BYTES:
            try:
                self._journal.append_encoded(self._spilled[0])
            except StoreError:
                return False
            size = len(self._spilled.popleft())
            self._spilled_bytes -= size
            written += size
            self._count("written")
        if written and not self._spilled:
            log.warning("recording works again, nothing is waiting in memory")
        return not self._spilled

    async def keep_synced(self) -> None:
        """Runs as long as the server: forces the journal to the disk, and retries what was spilled."""
        due = 0.0
        while True:
            await tick(min(QUARTER_SECONDS, self._sync_seconds or QUARTER_SECONDS))
            self.recover()
            if time.monotonic() >= due:
                due = time.monotonic() + self._sync_seconds
                await self._sync()
                if self._unforced is not None:
                    due = time.monotonic() + max(self._sync_seconds, RESYNC_SECONDS)

    async def _sync(self) -> None:
        """Both journals, whatever becomes of one."""
        failure = None
        try:
            if (force := self._journal.sync_later()) is not None:
                failure = await asyncio.to_thread(_attempt, force)
            if failure is not None:
                self._journal.distrust()
        except OSError as error:
            failure = error
        loop = asyncio.get_running_loop()
        if self._large.has_to_sync:  # else no thread is woken
            failure = await loop.run_in_executor(self._thread, _attempt, self._large.sync) or failure
        if failure is not None:
            self._count("unsynced")
            if self._unforced is None:
                log.error("the journal cannot be forced to the disk: %s", failure.strerror)
        elif self._unforced is not None:
            log.warning("the journal can be forced to the disk again")
        self._unforced = None if failure is None else failure.strerror or str(failure)

    def close(self) -> None:
        """Write what is left, if that is possible."""
        self.flush()
        before = len(self._spilled) + 1
        while len(self._spilled) < before:
            before = len(self._spilled)
            self.recover()
        if self._spilled:
            log.error("%d records are lost: the journal still cannot be written", len(self._spilled))
        self._thread.shutdown()
        for journal in (self._journal, self._large):
            if (failure := _attempt(journal.close)) is not None:
                log.error("the end of the journal cannot be forced to the disk: %s", failure.strerror)


def _attempt(work: Callable[[], None]) -> OSError | None:
    try:
        work()
    except OSError as error:
        return error
    return None


def _unavailable(error: StoreError) -> StoreUnavailable:
    refused = StoreUnavailable("the exchange cannot be recorded, and no upstream was asked")
    refused.__cause__ = error
    return refused


def kept_headers(first: Mapping[bytes, bytes], secrets: tuple[bytes, ...] = ()) -> dict[str, str]:
    """The headers that are recorded, keys blanked out. `first` by lower-case name."""
    kept = {text: first[name].decode("latin-1") for name, text in _kept_of(KEPT_HEADERS.intersection(first))}
    if not secrets or not any_stands_in("\n".join(kept.values()), secrets):
        return kept
    return {name: blank_text(text, secrets) for name, text in kept.items()}


@functools.lru_cache(1024)
def _kept_of(names: frozenset[bytes]) -> tuple[tuple[bytes, str], ...]:
    """Names of headers in their order, and as text."""
    return tuple((name, name.decode()) for name in sorted(names))

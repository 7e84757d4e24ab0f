"""Records exchanges: `begin` before the upstream is called, `end` before the last byte leaves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable

from gateway.domain.exchange import Begin, End
from gateway.errors import StoreError, StoreUnavailable
from gateway.stores.journal import JournalWriter, Record

log = logging.getLogger(__name__)

SPILL_BYTES = 256 * 1024 * 1024
KEPT_HEADERS = frozenset({
    b"content-type", b"content-encoding", b"user-agent", b"accept", b"retry-after",
    b"x-request-id", b"request-id", b"openai-processing-ms", b"openai-version", b"anthropic-version",
})  # fmt: skip
"""Only these headers are recorded: an allow-list, so that no key is ever kept by accident."""


class Capture:
    """Appends to the journal. When that fails: `fail_open` keeps records in memory and writes them when it
    can again, in order; `fail_closed` refuses the request before its upstream is called.

    `count(result)` is told of each record: `written`, `spooled` (kept in memory), `dropped` (memory full).
    """

    def __init__(
        self, journal: JournalWriter, *, fail_closed: bool, count: Callable[[str], None], sync_ms: int
    ) -> None:
        self._journal = journal
        self._fail_closed = fail_closed
        self._count = count
        self._sync_seconds = sync_ms / 1000
        self._spilled: deque[Record] = deque()
        self._spilled_bytes = 0

    def begin(self, record: Begin) -> None:
        """
        Raises:
            StoreUnavailable: it could not be written, and the operator chose `fail_closed`.
        """
        try:
            self._append(record)
        except StoreError as error:
            if self._fail_closed:
                raise StoreUnavailable(f"the exchange cannot be recorded: {error}") from error
            self._spill(record, error)

    def end(self, record: End) -> None:
        """Never raises: the client's answer is not held hostage."""
        try:
            self._append(record)
        except StoreError as error:
            self._spill(record, error)

    def _append(self, record: Record) -> None:
        if self._spilled and not self.recover():
            raise StoreError("the journal still cannot be written")
        self._journal.append(record)
        self._count("written")

    def _spill(self, record: Record, error: StoreError) -> None:
        size = len(record.request if isinstance(record, Begin) else record.response)
        if self._spilled_bytes + size > SPILL_BYTES:
            self._count("dropped")
            log.error("exchange %s is lost: %s, and the spill is full", record.id, error)
            return
        if not self._spilled:
            log.error("recording fails, keeping records in memory: %s", error)
        self._spilled.append(record)
        self._spilled_bytes += size
        self._count("spooled")

    @property
    def healthy(self) -> bool:
        """Whether everything so far is in the journal."""
        return not self._spilled

    def recover(self) -> bool:
        """Try to write what was spilled, oldest first; whether nothing is left."""
        while self._spilled:
            try:
                self._journal.append(self._spilled[0])
            except StoreError:
                return False
            self._spilled.popleft()
            self._count("written")
        self._spilled_bytes = 0
        return True

    async def keep_synced(self) -> None:
        """Runs as long as the server: forces the journal to the disk, and retries what was spilled."""
        while True:
            await asyncio.sleep(self._sync_seconds or 1.0)
            self.recover()
            force = self._journal.sync_later()
            if force is not None:
                try:
                    await asyncio.to_thread(force)
                except OSError:
                    log.exception("the journal could not be forced to the disk")

    def close(self) -> None:
        self.recover()
        self._journal.close()


def kept_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that are recorded, by lower-case name."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in headers
        if name.lower() in KEPT_HEADERS
    }


def blank_out(data: bytes, secrets: Iterable[bytes]) -> bytes:
    """The same bytes with every secret overwritten by asterisks (same length)."""
    for secret in secrets:
        if secret in data:
            data = data.replace(secret, b"*" * len(secret))
    return data


def key_id(secrets: Iterable[bytes]) -> str | None:
    """A short name for a client's key that cannot be turned back into it."""
    for secret in secrets:
        return hashlib.blake2b(secret, digest_size=6, person=b"unprompt-key").hexdigest()
    return None

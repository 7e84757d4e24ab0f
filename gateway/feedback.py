"""Takes feedback from the app into the store, without holding up traffic."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.domain.feedback import Feedback
from gateway.errors import StoreError, StoreUnavailable, UnknownExchange
from gateway.stores.remarks import note
from gateway.stores.sqlite import SqliteStore

FRESH_SECONDS = 60.0
WAIT_SECONDS = 5.0
"""An app may judge an answer as soon as it has it; its exchange is in the store within a second, where traffic is
steady within four."""
_ASK_AGAIN_SECONDS = 0.25
_OUR_ID = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7")


class FeedbackDesk:
    """Notes remarks, one after the other, in a thread of its own."""

    def __init__(self, store: Path) -> None:
        self._path = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")

    async def note(self, feedback: Feedback) -> bool:
        """Keep a remark; False where it says nothing new.

        Raises:
            UnknownExchange: no such exchange is recorded, nor on its way into the store.
            StoreUnavailable: the store cannot be written.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + (WAIT_SECONDS if _is_fresh(feedback.exchange_id) else 0.0)
        while True:
            try:
                return await loop.run_in_executor(self._thread, self._note, feedback)
            except UnknownExchange:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    def _note(self, feedback: Feedback) -> bool:
        if not self._path.exists():
            raise UnknownExchange("nothing is recorded yet")
        try:
            store = SqliteStore(self._path)  # not kept: a connection belongs to one thread, and remarks are rare
            try:
                return note(store, feedback)
            finally:
                store.close()
        except StoreError as error:
            raise StoreUnavailable("the store cannot be written just now; send the feedback again later") from error

    def close(self) -> None:
        """Take nothing more; what was begun is finished."""
        self._thread.shutdown(wait=False)


def _is_fresh(exchange_id: str) -> bool:
    """Whether the exchange began within the last minute: an id of ours begins with its time (UUID version 7)."""
    found = _OUR_ID.match(exchange_id)
    return found is not None and abs(time.time() - int(found[1] + found[2], 16) / 1000) < FRESH_SECONDS

"""Feedback in the store: noted once, read as what holds of each exchange."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

from gateway.domain.feedback import Feedback, standing
from gateway.errors import UnknownExchange
from gateway.stores.sqlite import SqliteStore


def note(store: SqliteStore, feedback: Feedback) -> bool:
    """Keep a remark; False where it says nothing new, so that one sent twice is one.

    Raises:
        UnknownExchange: no such exchange is in the store.
    """
    return bool(note_all(store, [feedback]))


def note_all(store: SqliteStore, remarks: Iterable[Feedback]) -> int:
    """Keep all of these remarks or none; gives how many say something new.

    Raises:
        UnknownExchange: one of them is about an exchange that is not in the store.
    """
    with store.transaction():
        return sum(_note(store, remark) for remark in remarks)


def _note(store: SqliteStore, feedback: Feedback) -> bool:
    name = feedback.exchange_id
    if not store.count("id = ?", [name]):
        raise UnknownExchange(
            f"no exchange {name!r} is recorded; the header x-unprompt-exchange of its answer names it"
        )
    before = store.rows("feedback", "exchange_id = ?", [name])
    says = feedback.says
    holds = standing(before).get(name, {})
    if all(holds.get(key, "" if value == "" else None) == value for key, value in says.items()):
        return False
    now = max([time.time(), *(row["created_at"] for row in before[-1:])])  # the last word stays last
    store.put("feedback", {"id": f"fb-{uuid.uuid4().hex}", "exchange_id": name, "created_at": now, **says})
    return True


def said(store: SqliteStore, exchange_ids: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """What holds of each exchange, or of these."""
    if exchange_ids is None:
        return standing(store.rows("feedback"))
    named = json.dumps(list(exchange_ids))
    return standing(store.rows("feedback", "exchange_id IN (SELECT value FROM json_each(?))", [named]))

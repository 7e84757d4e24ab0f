"""The task `mail` as a gateway knows it that has learned it: its template in the store, a small model beside it,
and the route that sends its requests there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stories import asked, mail, template

from gateway.domain.dataset import Row
from gateway.stores.sqlite import SqliteStore
from gateway.trainers.classifier import Options, train

TEXT = "I want my money back for the kettle"
BODY = json.dumps(asked(TEXT, temperature=0, seed=7), indent=1).encode()
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def learned(home: Path) -> None:
    """The task `mail` with its template is known, and a small model of it is trained."""
    store = SqliteStore(home / "data" / "unprompt.db")
    store.add_template(template())
    store.close()
    rows = [
        Row(exchange_id="e", text=text, messages=[], output=label, split="train") for text, label in mail()[:120]
    ]
    folder = home / "data" / "models" / "mail-1"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(train(rows, Options()).student.to_bytes())


def mail_route(upstream_name: str, model: str, *more: dict[str, Any], **target: Any) -> list[dict[str, Any]]:
    first = {"upstream": upstream_name, "model": model, "strip": "mail@1", **target}
    back = {"upstream": "openai", "model": "gpt-6"}
    return [{"name": "mail", "match": {"task": "mail"}, "targets": [first, *more], "fallback": back}]

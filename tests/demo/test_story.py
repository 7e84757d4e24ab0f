"""The demo's own bookkeeping; the story as a whole is run by CI, with its outcome checked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from halves import begin, end
from rich.console import Console

from gateway.config import load_config
from gateway.demo import outcome
from gateway.demo.client import Reply
from gateway.demo.stage import Options, recorded, write_config
from gateway.demo.story import phase_figures, plot
from gateway.domain.exchange import Exchange
from gateway.errors import TaskError
from gateway.stores.journal import JournalWriter
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore


def test_no_held_out_message_is_in_the_traffic_or_in_the_prompt() -> None:
    story = plot(Options())
    sent = {row.text for row in story.traffic}
    held_out = {row.text for row in story.held_out}
    assert len(held_out) == 300
    assert len(sent) > 1000
    assert not held_out & sent
    live = {row.text for row in story.live}  # asked while the candidate takes over
    assert (len(live), live & (sent | held_out)) == (600, set())
    assert not held_out & set(story.prompt.examples)


def test_a_file_with_a_test_split_is_compared_on_that_split_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"text": f"message {number} about {label}", "label": label, "split": "test" if number % 5 == 0 else "train"}
        for number in range(200)
        for label in ("billing", "delivery")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    story = plot(Options(data=file))
    assert {row.split for row in story.held_out} == {"test"}
    assert {row.split for row in story.traffic} == {"train"}


def test_cost_is_unknown_as_long_as_one_request_has_no_price(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "unprompt.db")
    priced = Exchange(id="a", started_at=1.0, tags={"phase": "after"}, cost_usd=0.5, input_tokens=100)
    unpriced = Exchange(id="b", started_at=2.0, tags={"phase": "after"}, cost_usd=None, input_tokens=300)
    replies = [Reply(text="x", right=True, milliseconds=10.0), Reply(text="y", milliseconds=30.0)]
    with store.transaction():
        store.absorb("s", 0, [priced])
    assert phase_figures(store, "after", replies[:1])["cost_per_1k_usd"] == 500
    with store.transaction():
        store.absorb("s", 0, [unpriced])
    figures = phase_figures(store, "after", replies)
    assert figures["cost_per_1k_usd"] is None
    assert figures["input_tokens"] == 200
    assert figures["accuracy"] == 0.5


def test_the_figures_wait_for_the_last_record_and_not_for_ever(tmp_path: Path) -> None:
    journal, store = tmp_path / "data" / "journal", SqliteStore(tmp_path / "data" / "unprompt.db")
    asyncio.run(recorded(tmp_path))  # nothing was recorded: nothing to wait for
    writer = JournalWriter(journal)
    writer.append(begin(1))
    writer.append(end(1))
    writer.close()
    with pytest.raises(TaskError, match=r"bytes are not in the store after 0\.2 s"):
        asyncio.run(recorded(tmp_path, 0.2))

    async def moved_meanwhile() -> int:
        waits = asyncio.create_task(recorded(tmp_path))
        await asyncio.sleep(0.15)
        assert not waits.done()
        Recorder(journal, store).drain()
        await waits
        return store.count()

    assert asyncio.run(moved_meanwhile()) == 1


@pytest.mark.parametrize("width", [80, 160])
def test_the_last_page_fits_the_terminal(width: int) -> None:
    score = {
        "candidate": "classifier word+char lr", "upstream": "local", "model": "support-1", "rows": 200,
        "agreement": 0.97, "agreement_low": 0.95, "answered": 0.8, "agreement_answered": 0.96,
        "min_confidence": 0.7,
        "cost_per_1k_usd": 0.01, "p50_ms": 0.4, "p95_ms": 1388.4, "input_tokens": 20.0, "finetune": "ft-1",
    }  # fmt: skip
    figures = {"accuracy": 0.99, "cost_per_1k_usd": 0.1, "input_tokens": 1400, "p50_ms": 600.0, "p95_ms": 1500.0}
    result = {
        "report": {"id": "e", "task": "support", "dataset": "d", "template": "support@1", "confidence": 0.95,
                   "incumbent": score | {"finetune": None}, "candidates": [score], "failed": {}},
        "decision": {"task": "support", "evaluation": "e", "candidate": "ft-1", "score": score, "promote": True,
                     "checks": [{"name": "agreement, lower bound", "value": 0.95, "limit": 0.95, "holds": True}]},
        "before": figures | {"requests": 300}, "after": figures | {"accuracy": 0.98, "cost_per_1k_usd": 0.05},
        "labels": 12, "stripped_share": 0.8, "fallback_share": 0.2, "changed_requests": 60, "wrong_strips": 0,
        "changed_accuracy": 1.0, "rows": 1000, "candidates": 4, "seconds": 60.0, "task": "support", "home": "h",
        "promoted": True,
    }  # fmt: skip
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    outcome.show(result, console)
    page = console.export_text()
    assert "-1.0 points" in page
    assert "-50.0 %" in page
    assert "classifier word+char lr" in page, "a candidate's name must not be broken"
    assert "1,388.4" in page


def test_what_a_demo_has_kept_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(Path("kept"), "http://upstream/v1", {"min_rows": 100})
    monkeypatch.chdir(tmp_path / "kept")
    config = load_config(Path("config") / "gateway.yaml")
    assert config.store.path == tmp_path / "kept" / "data" / "unprompt.db"
    assert config.policy("mail").min_rows == 100

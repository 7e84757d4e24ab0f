"""A promoted candidate whose embedding is no longer there: its requests go whole to the prompted model, and nothing
else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from relaying import CHAT, Relay, answering, openai, relay, request, response, soon, story, upstream
from stories import asked, keep, traffic
from tiny_bert import tiny_bert

from gateway import embeddings
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.pipeline import dataset
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import TrainerSettings, build

LETTER = asked("please refund the broken kettle today")
WHOLE = json.dumps(LETTER).encode()


def promoted(home: Path, embedding: Path) -> list[dict[str, Any]]:
    """A classifier that reads texts with this embedding, trained and on the route; gives the route."""
    store = SqliteStore(home / "data" / "unprompt.db")
    keep(store, traffic(120))
    data = dataset.build(store, "mail", home / "data" / "datasets")
    options = {"features": "word", "embedding": str(embedding)}
    one = FineTune(id="ft-1", task="mail", dataset=data.id, trainer="classifier", options=options)
    settings = TrainerSettings(models=home / "data" / "models")
    done = build("classifier", settings).run(one, data, lambda saved: None)
    assert (done.state, done.error) == (FineTuneState.SUCCEEDED, None)
    store.close()
    target = {"upstream": "local", "model": done.model, "strip": "mail@1"}
    fallback = {"upstream": "openai", "model": "gpt-6"}
    return [{"name": "mail", "match": {"task": "mail"}, "targets": [target], "fallback": fallback}]


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> None:
    """An embedding is read once a process; here each story is a new one."""
    embeddings.find.cache_clear()


async def served_by(gateway: Relay) -> bytes | None:
    answer = await gateway.ask(request(WHOLE))
    assert answer.status == 200
    return answer.header(b"x-unprompt-target")


@story
async def test_with_its_embedding_the_candidate_answers(tmp_path: Path) -> None:
    routes = promoted(tmp_path, tiny_bert(tmp_path / "bert"))
    async with upstream(answering(response())) as home, relay(tmp_path, openai(home), routes=routes) as gateway:
        assert (await served_by(gateway) or b"").startswith(b"local/mail-")
        assert home.requests == []


@pytest.mark.parametrize("how", ["gone", "damaged", "another"])
@story
async def test_without_it_at_the_start_requests_go_whole_to_the_fallback(tmp_path: Path, how: str) -> None:
    place = tiny_bert(tmp_path / "bert")
    routes = promoted(tmp_path, place)
    embeddings.find.cache_clear()
    if how == "gone":
        shutil.rmtree(place)
    elif how == "damaged":
        (place / "model.safetensors").write_bytes(b"not what it was")
    else:
        tiny_bert(place, layers=1)
    async with upstream(answering(response())) as home, relay(tmp_path, openai(home), routes=routes) as gateway:
        assert await served_by(gateway) == b"openai/gpt-6 whole"
        assert home.requests[-1].body == WHOLE  # byte for byte what the app sent
        assert (await gateway.ask(request(CHAT))).status == 200  # a request of no task
        assert (await gateway.get(b"/readyz")).status == 200
        assert await soon(lambda: sum(row.complete for row in gateway.rows()) >= 2)
        row = next(row for row in gateway.rows() if row.task == "mail" and row.request == WHOLE)
        assert (row.target, row.stripped, row.error_type) == ("openai/gpt-6", False, None)


@story
async def test_while_it_is_served_a_file_that_goes_changes_nothing_until_the_next_start(tmp_path: Path) -> None:
    place = tiny_bert(tmp_path / "bert")
    routes = promoted(tmp_path, place)
    async with upstream(answering(response())) as home:
        async with relay(tmp_path, openai(home), routes=routes) as gateway:
            shutil.rmtree(place)
            assert (await served_by(gateway) or b"").startswith(b"local/mail-")
        embeddings.find.cache_clear()
        async with relay(tmp_path, openai(home), routes=routes) as gateway:
            assert await served_by(gateway) == b"openai/gpt-6 whole"
        embeddings.find.cache_clear()
        shutil.copytree(tiny_bert(tmp_path / "again"), place)
        async with relay(tmp_path, openai(home), routes=routes) as gateway:
            assert (await served_by(gateway) or b"").startswith(b"local/mail-")

"""A template that is withheld is not stripped, whatever the routes say, nor where another says more of a request;
the relays hear of both at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from relaying import answering, openai, relay, request, response, soon, story, upstream
from stories import MODEL, NEW_SYSTEM, asked, template

from gateway.domain import layout
from gateway.domain.route import Match, Route, RouteTable, Target
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.errors import ConfigError
from gateway.matches import Matches, write_matches
from gateway.proxy.router import Incoming, Plan, Switchboard
from gateway.stores.sqlite import SqliteStore
from gateway.withheld import FILE, withheld, withhold

BODY = json.dumps(asked("where is my parcel")).encode()
TABLE = RouteTable(routes=(Route(name="mail", match=Match(), targets=(Target(upstream="tuned", strip="mail@1"),)),))


def planned(board: Switchboard, body: bytes = BODY) -> Plan:
    incoming = Incoming(provider="openai", model=MODEL, body=body, is_chat=True)
    return board.plan(incoming, lambda: 0.0)


def test_a_withheld_template_is_not_stripped() -> None:
    assert planned(Switchboard.build(TABLE, [template()])).attempts[0].stripped
    (attempt,) = planned(Switchboard.build(TABLE, [template()], ["mail@1", "other@7"])).attempts
    assert (attempt.upstream, attempt.stripped, attempt.body) == ("openai", False, BODY)


def test_what_another_version_knows_as_prompt_is_not_sent_as_input() -> None:
    """Version 1 matches too: its slot would hold the instruction that version 2 has learnt."""
    header = layout.read_message({"role": "user", "content": ""})[0]
    brief = MessagePattern(header, (TextPattern(("Message: ", "\nBe brief."), (Slot("message"),)),))
    second = PromptTemplate("mail", 2, (template().head[0], brief))
    body = json.dumps(asked("where is my parcel\nBe brief.")).encode()
    assert planned(Switchboard.build(TABLE, [template()]), body).attempts[0].stripped
    assert not planned(Switchboard.build(TABLE, [template(), second]), body).attempts[0].stripped
    assert planned(Switchboard.build(TABLE, [template(), second])).attempts[0].stripped


def test_what_another_task_knows_as_prompt_is_not_sent_as_input() -> None:
    """A chat under the shop's system prompt, and beside it the mail, which begins its messages: `Message: `."""
    talk = template(turns=True, task="talk")
    aims = (Target(upstream="tuned", strip="talk@1"),)
    said = [asked("")["messages"][0], {"role": "user", "content": "hello"}]
    hello = json.dumps({"model": MODEL, "messages": said}).encode()
    for match in (Match(), Match(task="talk")):
        table = RouteTable(routes=(Route(name="talk", match=match, targets=aims),))
        assert planned(Switchboard.build(table, [talk])).attempts[0].stripped
        alone = planned(Switchboard.build(table, [talk, template()]))
        assert (alone.task, [attempt.stripped for attempt in alone.attempts]) == ("mail", [False])
        assert planned(Switchboard.build(table, [talk, template()]), hello).attempts[0].stripped


def test_of_two_tasks_with_one_prompt_each_is_stripped() -> None:
    """An app that names its tasks may have a prompt in two of them."""
    both = [template(), template(task="letters")]
    for name in ("mail", "letters"):
        aims = (Target(upstream="tuned", strip=f"{name}@1"),)
        table = RouteTable(routes=(Route(name=name, match=Match(task=name), targets=aims),))
        asked_as = Incoming(provider="openai", model=MODEL, body=BODY, is_chat=True, task_hint=name)
        assert Switchboard.build(table, both).plan(asked_as, lambda: 0.0).attempts[0].stripped


@story
async def test_a_relay_hears_of_prompts_that_are_found_while_it_runs(tmp_path: Path) -> None:
    home = tmp_path / "data"
    store = SqliteStore(home / "unprompt.db")
    store.add_template(template(turns=True, task="talk"))
    route = {"name": "talk", "match": {}, "targets": [{"upstream": "tuned", "model": "tiny", "strip": "talk@1"}]}
    async with upstream(answering(response())) as tuned, upstream(answering(response())) as own:
        providers = openai(own) | {"tuned": openai(tuned)["openai"]}
        async with relay(tmp_path, providers, routes=[route]) as gateway:

            async def target() -> bytes | None:
                return (await gateway.ask(request(BODY))).header(b"x-unprompt-target")

            assert await target() == b"tuned/tiny stripped"
            store.add_template(template())
            write_matches(home, Matches(states={"talk@1": "trusted", "mail@1": "proposed"}))
            assert await soon(lambda: "mail@1" in gateway.app.house.switchboard.by_name)
            assert await target() == f"openai/{MODEL} whole".encode()
            before = gateway.app.house.switchboard
            write_matches(home, Matches(states={"talk@1": "trusted", "mail@1": "proposed"}, shares={"mail": 0.5}))
            await asyncio.sleep(1)
            assert gateway.app.house.switchboard is before
            write_matches(home, Matches(states={"talk@1": "trusted", "mail@1": "trusted"}))
            assert await soon(lambda: gateway.app.house.switchboard is not before)
    store.close()


@story
async def test_a_relay_stops_stripping_and_goes_on_stripping_when_the_worker_says_so(tmp_path: Path) -> None:
    home = tmp_path / "data"
    store = SqliteStore(home / "unprompt.db")
    store.add_template(template())
    route = {
        "name": "mail",
        "match": {"task": "mail"},
        "targets": [{"upstream": "tuned", "model": "tiny", "strip": "mail@1"}],
        "fallback": {"upstream": "openai", "model": MODEL},
    }
    async with upstream(answering(response())) as tuned, upstream(answering(response())) as own:
        providers = openai(own) | {"tuned": openai(tuned)["openai"]}
        async with relay(tmp_path, providers, routes=[route]) as gateway:

            async def target() -> bytes | None:
                return (await gateway.ask(request(BODY))).header(b"x-unprompt-target")

            assert await target() == b"tuned/tiny stripped"
            withhold(home, {"mail@1": "its slot holds something new"})
            assert await soon(lambda: gateway.app.house.switchboard.withheld == {"mail@1"})
            assert await target() == f"openai/{MODEL} whole".encode()
            assert own.requests[-1].body == BODY
            (home / FILE).write_bytes(b"{torn")
            assert await soon(lambda: b'reload_total{result="failed"} 1.0' in gateway.app.metrics.expose())
            assert await target() == f"openai/{MODEL} whole".encode()
            store.add_template(template(NEW_SYSTEM, 2))
            withhold(home, {})
            assert await soon(lambda: gateway.app.house.switchboard.withheld == frozenset())
            assert await target() == b"tuned/tiny stripped"
            assert "mail@2" in gateway.app.house.switchboard.by_name
    store.close()


def test_the_file_is_written_only_when_something_has_changed(tmp_path: Path) -> None:
    assert withheld(tmp_path) == {}
    assert not withhold(tmp_path, {})
    assert withhold(tmp_path, {"b@1": "why", "a@2": "because"})
    assert not withhold(tmp_path, {"a@2": "because", "b@1": "why"})
    assert withheld(tmp_path) == {"a@2": "because", "b@1": "why"}
    (tmp_path / FILE).write_bytes(b"[]")
    with pytest.raises(ConfigError, match=FILE):
        withheld(tmp_path)

"""The pages at `/unprompt/`: what people read of their tasks, with texts that would like to be markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from relaying import Message, Relay, answering, openai, relay, response, soon, story, upstream
from stories import asked, exchange, keep, traffic

from gateway.app import workshop
from gateway.dashboard import facts, pages
from gateway.pipeline.cycle import Workshop, turn
from gateway.pipeline.gate import Check, Decision
from gateway.raised import Told
from gateway.stores.sqlite import SqliteStore

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """The elements of a page, its links, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def served(shop: Workshop) -> None:
    """A task that was promoted, saves, and had a candidate refused before."""
    whole = traffic(40)
    bare = [
        exchange(200 + n, asked(f"{HOSTILE} {n}"), "refund", stripped=True, target="local/mail-1", cost_usd=0.0)
        for n in range(10)
    ]
    keep(shop.store, [*whole, *bare])
    refusal = Decision(
        task="mail", evaluation="eval-1", candidate="f1", score=None, promote=False,
        checks=(Check("agreement, lower bound", 0.9, 0.95, False),),
    )  # fmt: skip
    for number, (action, record) in enumerate([("refuse", refusal), ("promote", None)]):
        shop.store.put("promotions", {
            "id": f"p{number}", "task": "mail", "action": action, "target": "mail-1", "state": "done",
            "decision": msgspec.json.encode(record).decode(), "created_at": 1000.0 + number,
        })  # fmt: skip


def test_all_tasks_on_a_page(shop: Workshop) -> None:
    served(shop)
    read = Tags(pages.board(facts.board(shop.store, shop.config)))
    assert "/unprompt/tasks/mail" in read.links
    for text in ("mail@1", "20.0%", "refused", "promoted", "0.0100 USD", "50 requests, 10 stripped"):
        assert text in read.text, text
    assert "script" not in read.names


def test_what_audits_have_eaten_up_is_no_saving_and_no_column(shop: Workshop) -> None:
    served(shop)
    found = facts.page(shop.store, shop.config, "mail")
    assert 'class="filled"' in pages.task(found)
    (day,) = found.saved.days
    nothing = msgspec.structs.replace(found.saved, usd=4e-19, days=(msgspec.structs.replace(day, usd=4e-19),))
    page = pages.task(msgspec.structs.replace(found, saved=nothing))
    assert "0.00 USD at most" in page
    assert 'class="filled"' not in page


def test_on_a_narrow_screen_each_cell_has_the_name_of_its_column(shop: Workshop) -> None:
    served(shop)
    page = pages.board(facts.board(shop.store, shop.config))
    assert '<td class="right" data-name="requests">50</td>' in page
    assert "content: attr(data-name)" in page


def test_one_task_with_its_prompt_and_texts_that_stay_texts(shop: Workshop) -> None:
    served(shop)
    page = pages.task(facts.page(shop.store, shop.config, "mail"))
    read = Tags(page)
    assert "{{message}}" in read.text
    assert HOSTILE in read.text  # shown, as text
    assert not {"script", "img"} & set(read.names)
    assert [link for link in read.links if not link.startswith("/unprompt/")] == []


def test_who_has_a_model_of_its_own_has_it_also_while_the_next_one_is_trained(shop: Workshop) -> None:
    served(shop)
    assert "1 with a model of their own" in Tags(pages.board(facts.board(shop.store, shop.config))).text
    shop.store.put("jobs", {
        "id": "cycle-mail-2", "kind": "cycle", "task": "mail", "state": "running", "step": "finetune", "detail": {},
        "created_at": 2000.0, "updated_at": 2000.0,
    })  # fmt: skip
    text = Tags(pages.board(facts.board(shop.store, shop.config))).text
    assert "in work: finetune" in text
    assert "1 with a model of their own" in text
    shop.store.put("promotions", {
        "id": "p3", "task": "mail", "action": "rollback", "state": "done", "decision": "null", "created_at": 3000.0,
    })  # fmt: skip
    assert "0 with a model of their own" in Tags(pages.board(facts.board(shop.store, shop.config))).text


def test_a_decision_leads_to_the_report_that_it_was_made_on(shop: Workshop) -> None:
    """The store names a dataset's folder from where it stands itself, so that both can be moved together."""
    served(shop)
    assert not [link for link in Tags(pages.board(facts.board(shop.store, shop.config))).links if "reports" in link]
    folder = shop.store.path.parent / "datasets" / "mail" / "mail-1"
    folder.mkdir(parents=True)
    (folder / "report.html").write_bytes(b"the report")
    shop.store.put("evaluations", {"id": "eval-1", "task": "mail", "dataset": "mail-1", "report": {},
                                   "created_at": 1.0})  # fmt: skip
    shop.store.put("datasets", {
        "id": "mail-1", "task": "mail", "template": "mail@1", "directory": "datasets/mail/mail-1", "digest": "",
        "train_rows": 0, "validation_rows": 0, "card": {}, "created_at": 1.0,
    })  # fmt: skip
    assert "/unprompt/reports/eval-1" in Tags(pages.board(facts.board(shop.store, shop.config))).links
    assert facts.report(shop.store, "eval-1") == b"the report"


def test_an_alarm_and_what_audits_say(shop: Workshop) -> None:
    served(shop)
    found = facts.board(shop.store, shop.config)
    told = {"mail": Told(["agreement"], (0.91, 0.94, 0.96))}
    read = Tags(pages.board(msgspec.structs.replace(found, told=told)))
    assert "Alarms" in read.text
    assert "94.0%" in read.text


def test_a_store_in_which_nothing_happened_yet(shop: Workshop) -> None:
    read = Tags(pages.board(facts.board(shop.store, shop.config)))
    assert "a handful of requests" in read.text


def test_a_task_whose_name_is_an_address_is_linked_as_a_name(shop: Workshop) -> None:
    shop.store.put("promotions", {
        "id": "p", "task": "../x?y#z", "action": "rollback", "state": "done", "decision": "null", "created_at": 1.0,
    })  # fmt: skip
    read = Tags(pages.board(facts.board(shop.store, shop.config)))
    assert "/unprompt/tasks/..%2Fx%3Fy%23z" in read.links


# --- served ----------------------------------------------------------------------------------------------


@story
async def test_the_pages_are_served_with_a_policy_that_forbids_scripts(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        store = SqliteStore(gateway.app.places.store)
        keep(store, traffic(20))
        store.close()
        moved = await gateway.get(b"/unprompt")
        assert (moved.status, moved.header(b"location")) == (302, b"/unprompt/")
        page = await gateway.ask(b"GET /unprompt/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (page.status, page.header(b"content-type")) == (200, b"text/html; charset=utf-8")
        assert b"default-src 'none'" in (page.header(b"content-security-policy") or b"")
        assert b"mail@1" in page.body


@pytest.mark.parametrize("path", [b"/unprompt/tasks/none", b"/unprompt/reports/none", b"/unprompt/api/tasks/none"])
@story
async def test_what_there_is_not(tmp_path: Path, path: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = await wire.message()
        assert (answer.status, answer.header(b"x-unprompt-error")) == (404, b"unknown_page")
        wire.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [(b"localhost:8080", 200), (b"127.0.0.1", 200), (b"[::1]:80", 200), (b"evil.example", 403), (b"", 403)],
)
@story
async def test_a_web_site_that_leads_to_this_machine_reads_nothing(
    tmp_path: Path, host: bytes, status: int
) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(b"GET /unprompt/api/tasks HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        answer = await wire.message()
        assert answer.status == status
        if status == 200:
            assert json.loads(answer.body) == []
        wire.close()


async def posted(gateway: Relay, path: str, body: bytes = b"", *headers: bytes) -> Message:
    named = b"".join(b"\r\n" + header for header in (b"Host: localhost", *headers))
    head = f"POST /unprompt/api/tasks/{path} HTTP/1.1".encode() + named
    return await gateway.ask(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@story
async def test_a_program_promotes_and_rolls_back(tmp_path: Path) -> None:
    tasks = {"default": {"min_rows": 100, "approve": "ask"}}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), tasks=tasks) as gateway:
        shop = workshop(gateway.app.files, gateway.app.config)
        keep(shop.store, traffic(500))
        assert turn(shop, "mail") is not None
        shop.store.close()
        assert not gateway.routes.exists()
        elsewhere = await posted(gateway, "mail/promote", b"", b"Origin: https://elsewhere.example")
        assert (elsewhere.status, gateway.routes.exists()) == (403, False)
        wrong = await posted(gateway, "mail/promote", b'{"canary": 500}', b"Content-Type: application/json")
        assert (wrong.status, wrong.header(b"x-unprompt-error")) == (400, b"bad_request")
        done = await posted(gateway, "mail/promote", b'{"canary": 5}', b"Content-Type: application/json")
        assert done.status == 200
        assert done.json()["route"]["targets"][0]["weight"] == 5
        assert await soon(lambda: len(gateway.app.house.switchboard.table.routes) == 1, 2)
        assert (await posted(gateway, "mail/rollback")).status == 200
        assert await soon(lambda: gateway.app.house.switchboard.table.routes == (), 2)
        asked_too = await posted(gateway, "mail/promote", b'{"shadow": true}', b"Content-Type: application/json")
        assert asked_too.json()["route"]["shadow"]["percent"] == 100
        assert (await posted(gateway, "mail/rollback")).status == 200
        assert (await posted(gateway, "mail/rollback")).status == 404


@story
async def test_the_gate_refuses_a_program_too(tmp_path: Path) -> None:
    # Not asked again: the upstream shares its event loop with the turn, which holds it up.
    tasks = {"default": {"min_rows": 100, "approve": "ask", "ask_again": 0}}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), tasks=tasks) as gateway:
        shop = workshop(gateway.app.files, gateway.app.config)
        keep(shop.store, traffic(110))  # too few to judge by
        assert turn(shop, "mail") is not None
        shop.store.close()
        refused = await posted(gateway, "mail/promote")
        assert (refused.status, refused.header(b"x-unprompt-error")) == (409, b"refused")
        assert not gateway.routes.exists()


def test_the_style_needs_no_network() -> None:
    style = (Path(pages.__file__).parent / "pages.css").read_text("utf-8")
    assert not re.search(r"url\(|@import", style)

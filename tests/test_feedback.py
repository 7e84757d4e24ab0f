"""What an app says of an answer is kept once, whoever may not say anything is refused, and traffic never waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from relaying import CHAT, Message, Relay, answering, openai, relay, request, response, story, upstream
from stories import exchange, keep, mail, traffic

import gateway.feedback
from gateway import admin
from gateway.domain.feedback import Feedback, read_feedback, standing
from gateway.errors import UnknownExchange
from gateway.feedback import FeedbackDesk
from gateway.pipeline.dataset import build
from gateway.stores.remarks import note, note_all, said
from gateway.stores.sqlite import SqliteStore

PATH = b"/unprompt/api/feedback"
JSON = b"Content-Type: application/json"


async def post(gateway: Relay, body: dict[str, Any] | bytes, *headers: bytes) -> Message:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await gateway.ask(request(content, *(headers or (JSON,)), path=PATH))


@story
async def test_an_app_corrects_the_answer_that_it_has_just_had(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        name = (await gateway.ask(request(CHAT))).header(b"x-unprompt-exchange")
        assert name is not None
        remark = {"exchange_id": name.decode(), "label": "refund", "score": -1}
        asked = asyncio.create_task(post(gateway, remark))  # before the worker has moved the record
        await asyncio.sleep(0.1)
        assert not asked.done()
        assert len(gateway.rows()) == 1  # now it has
        answer = await asked
        assert (answer.status, answer.json()) == (201, {"exchange_id": name.decode(), "noted": True})
        again = await post(gateway, remark)
        assert (again.status, again.json()["noted"]) == (200, False)
        assert said(SqliteStore(gateway.app.places.store)) == {
            name.decode(): {"label": "refund", "corrected_output": "", "score": -1.0}
        }
        assert len(up.requests) == 1


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "truncated"),
        (b"{oh", "malformed"),
        (b"[]", "Expected `object`"),
        (b"{}", "exchange_id"),
        (b'{"exchange_id": "e1"}', "give one of score, label, corrected_output, comment"),
        (b'{"exchange_id": "e1", "label": null}', "give one of score, label"),
        (b'{"exchange_id": "", "label": "x"}', "exchange_id"),
        (b'{"exchange_id": 7, "label": "x"}', "Expected `str`, got `int`"),
        (b'{"exchange_id": "e1", "score": 5}', "`float` <= 1.0"),
        (b'{"exchange_id": "e1", "score": NaN}', "malformed"),
        (b'{"exchange_id": "e1", "score": true}', "got `bool`"),
        (b'{"exchange_id": "e1", "stars": 5}', "unknown field `stars`"),
        (b'{"exchange_id": "e1", "label": "\\ud83d"}', "truncated"),
        (b"[" * 100_000, "got `array`"),
    ],
)
def test_what_is_no_remark_is_refused_with_what_is_wrong(body: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)" + complaint.replace("`", ".")):
        read_feedback(body)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_remark_or_a_complaint(body: bytes) -> None:
    with pytest.raises(ValueError, match="exchange_id"):
        read_feedback(body)


@story
async def test_refusals_have_codes(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        good = {"exchange_id": "e1", "label": "refund"}
        cases = [
            (await post(gateway, b"{oh"), 400, b"bad_request"),
            (await post(gateway, good, b"Content-Type: text/plain"), 400, b"bad_request"),
            (await post(gateway, good), 404, b"unknown_exchange"),
            (await post(gateway, good, JSON, b"Origin: https://elsewhere.example"), 403, b"forbidden"),
            (await post(gateway, good, JSON, b"Origin: null"), 403, b"forbidden"),
            (await post(gateway, good, JSON, b"Origin: http://127.0.0.1:9"), 404, b"unknown_exchange"),
            (await post(gateway, b" " * 1_100_000), 413, b"body_too_large"),
            (await gateway.ask(request(b"", method=b"GET", path=PATH)), 405, b"bad_request"),
        ]
        for answer, status, code in cases:
            assert (answer.status, answer.header(b"x-unprompt-error")) == (status, code)
            assert answer.json()["error"]["code"] == code.decode()
        assert (await gateway.ask(request(CHAT))).status == 200
        assert len(up.requests) == 1  # none of it was relayed


@story
async def test_an_old_unknown_id_is_refused_at_once_and_a_young_one_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.feedback, "WAIT_SECONDS", 0.4)
    from gateway.domain.exchange import id_maker

    SqliteStore(tmp_path / "u.db").close()
    desk = FeedbackDesk(tmp_path / "u.db")
    loop = asyncio.get_running_loop()
    took = []
    for name in ("0198c0de-7b1a-7000-8a2b-6f1d2c3b4a59", "what", id_maker()()):
        since = loop.time()
        with pytest.raises(UnknownExchange):
            await desk.note(Feedback(exchange_id=name, score=1.0))
        took.append(loop.time() - since)
    desk.close()
    assert max(took[:2]) < 0.35 < took[2]


@story
async def test_a_store_that_cannot_be_read_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "u.db").write_bytes(b"no database" * 1000)
    desk = FeedbackDesk(tmp_path / "u.db")
    app = admin.application(lambda: [b""], list, None, desk.note)
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(PATH.decode(), json={"exchange_id": "e1", "score": 1})
        assert (answer.status, answer.headers["x-unprompt-error"]) == (503, "store_unavailable")
        assert str(tmp_path) not in await answer.text()
    desk.close()


@web.middleware
async def from_far_away(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    return await handler(request.clone(remote="203.0.113.9"))


@pytest.mark.parametrize(("given_token", "status"), [(None, 403), ("wrong", 403), ("t0ken", 201)])
@story
async def test_from_elsewhere_a_token_is_needed(given_token: str | None, status: int) -> None:
    noted: list[Feedback] = []

    async def keep_it(remark: Feedback) -> bool:
        noted.append(remark)
        return True

    app = admin.application(lambda: [b""], list, "t0ken", keep_it)
    app.middlewares.insert(0, from_far_away)
    headers = {"Origin": "https://unprompt.example"} | (
        {"Authorization": f"Bearer {given_token}"} if given_token else {}
    )
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(PATH.decode(), json={"exchange_id": "e1", "score": 1}, headers=headers)
        assert answer.status == status
    assert len(noted) == (status == 201)


# --- in the store ----------------------------------------------------------------------------------------


def test_the_last_word_counts_of_each_field_and_a_repeated_one_is_not_kept(store: SqliteStore) -> None:
    keep(store, traffic(2))
    words = [{"score": 1.0}, {"score": -1.0}, {"score": -1.0}, {"comment": "hm"}, {"score": 1.0}, {"score": 1.0}]
    new = [note(store, Feedback(exchange_id="e00000", **word)) for word in words]  # type: ignore[arg-type]
    assert new == [True, True, False, True, True, False]
    assert said(store) == {"e00000": {"score": 1.0, "comment": "hm"}}
    assert said(store, ["e00001"]) == {}


def test_a_newer_label_takes_the_place_of_a_correction_and_both_can_be_taken_back(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(60))
    texts = [text for text, _ in mail()]

    def learnt() -> dict[str, str]:
        return {row.text: row.output for row in build(store, "mail", tmp_path).rows}

    note(store, Feedback(exchange_id="e00000", corrected_output="praise"))
    assert learnt()[texts[0]] == "praise"
    note(store, Feedback(exchange_id="e00000", label="other"))
    assert learnt()[texts[0]] == "other"
    note(store, Feedback(exchange_id="e00000", corrected_output="delivery"))
    assert learnt()[texts[0]] == "delivery"
    note(store, Feedback(exchange_id="e00000", label="", corrected_output=""))
    assert learnt()[texts[0]] == "refund"  # as the model had answered


def test_a_correction_wins_over_an_approval_and_that_over_the_majority(store: SqliteStore, tmp_path: Path) -> None:
    text = mail()[0][0]
    again = json.loads(traffic(1)[0].request)
    keep(
        store,
        [*traffic(60), *(exchange(900 + n, again, label) for n, label in enumerate(["other"] * 3 + ["praise"]))],
    )

    def learnt() -> str:
        return next(row.output for row in build(store, "mail", tmp_path).rows if row.text == text)

    assert learnt() == "other"
    note(store, Feedback(exchange_id="e00903", score=1.0))
    assert learnt() == "praise"
    note(store, Feedback(exchange_id="e00900", label="delivery"))
    assert learnt() == "delivery"


def test_of_many_remarks_all_are_kept_or_none(store: SqliteStore) -> None:
    keep(store, traffic(2))
    remarks = [Feedback(exchange_id=name, score=1.0) for name in ("e00000", "e00001", "e09999")]
    with pytest.raises(UnknownExchange, match="e09999"):
        note_all(store, remarks)
    assert store.rows("feedback") == []
    assert note_all(store, remarks[:2]) == 2


def test_the_last_word_stays_last_when_the_clock_goes_back(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, traffic(1))
    for moment, label in ((2000.0, "praise"), (1000.0, "other")):
        monkeypatch.setattr("gateway.stores.remarks.time.time", lambda moment=moment: moment)
        note(store, Feedback(exchange_id="e00000", label=label))
    assert said(store)["e00000"]["label"] == "other"


def test_remarks_of_earlier_releases_are_read() -> None:
    nothing: dict[str, Any] = {"exchange_id": "e1", "score": None, "label": None, "corrected_output": None}
    rows = [nothing | {"label": "a", "comment": None}, nothing | {"score": -0.5, "comment": None}]
    assert standing(rows) == {"e1": {"label": "a", "score": -0.5}}

"""Exchanges become rows, or are dropped for a reason that is counted; and the same exchanges always the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import stories
from hypothesis import given
from hypothesis import strategies as st
from stories import answer, asked, exchange, feedback, keep, mail, template, traffic

from gateway import embeddings
from gateway.domain.dataset import Dataset
from gateway.domain.exchange import Exchange
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.errors import DatasetError, StoreError, TaskError
from gateway.pipeline import dataset
from gateway.pipeline.card import card_text, kind_of
from gateway.pipeline.dataset import build, export, load
from gateway.pipeline.examples import session, split_of
from gateway.stores.sqlite import SqliteStore


def built_of(store: SqliteStore, tmp_path: Path, exchanges: list[Exchange], *templates: Any) -> Dataset:
    keep(store, exchanges, *templates)
    return build(store, "mail", tmp_path / "datasets")


def outputs(data: Dataset) -> dict[str, str]:
    return {row.text: row.output for row in data.rows}


def test_a_row_is_the_stripped_input_and_the_answer(store: SqliteStore, tmp_path: Path) -> None:
    data = built_of(store, tmp_path, traffic(60))
    first = data.rows[0]
    assert (first.exchange_id, first.text) == ("e00000", "I want my money back for the kettle")
    assert first.messages == [{"role": "user", "content": "I want my money back for the kettle"}]
    assert first.output == "refund"
    assert data.card["kind"] == "classification"
    assert data.card["balance"] == {"refund": 15, "delivery": 15, "praise": 15, "other": 15}
    assert store.tasks()[0]["kind"] == "classification"


def test_the_files_are_what_a_fine_tuning_api_takes(store: SqliteStore, tmp_path: Path) -> None:
    data = built_of(store, tmp_path, traffic(60))
    lines = (Path(data.directory) / "train.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(data.part("train")) == data.card["train"]
    assert json.loads(lines[0]) == {
        "messages": [
            {"role": "user", "content": "where is the parcel with the kettle"},
            {"role": "assistant", "content": "delivery"},
        ]
    }
    card = (Path(data.directory) / "card.md").read_text("utf-8")
    assert card == card_text(data.card)
    assert "| recorded exchanges | 60 |" in card
    assert "answers of openai/gpt-6" in card


# --- what is dropped, and why ---------------------------------------------------------------------------

ODD = "a message like no other"
TOOLS = {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (exchange(900, asked(ODD), "refund", complete=False), "incomplete"),
        (exchange(900, asked(ODD), "refund", truncated=True), "incomplete"),
        (exchange(900, asked(ODD), "refund", status=429), "error status"),
        (exchange(900, asked(ODD), "refund", status=None), "error status"),
        (exchange(900, asked(ODD), "refund", request=b"", response=b""), "recorded without its body"),
        (exchange(900, asked(ODD, system="Another prompt."), "refund"), "does not match the template"),
        (exchange(900, asked(ODD), "refund", request=b"{broken"), "does not match the template"),
        (exchange(900, asked(ODD), "refund", stripped=True, target="local/mail-1"), "answered by a candidate"),
        (exchange(900, asked(ODD), "refund", target="openai/ft:mail-2"), "answered by a candidate"),
        (exchange(900, asked(ODD, model="gpt-5"), "refund"), "answered by another model"),
        (exchange(900, asked(ODD), answer(None, finish="tool_calls", **TOOLS)), "tool calls"),
        (exchange(900, asked(ODD), answer("ref", finish="length")), "not finished"),
        (exchange(900, asked(ODD), answer(None, refusal="No.")), "refusal"),
        (exchange(900, asked(ODD), "I'm sorry, but I can't help with that."), "refusal"),
        (exchange(900, asked(ODD), answer("", finish="content_filter")), "refusal"),
        (exchange(900, asked(ODD), " \n"), "empty answer"),
        (exchange(900, asked(ODD), {"error": "?"}), "unreadable answer"),
        (exchange(900, asked(ODD), "refund", response=b"<html>"), "unreadable answer"),
        (exchange(900, asked(ODD), "refund \ud83d"), "not valid text"),
        (exchange(900, asked(mail()[0][0]), "refund"), "duplicate input"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_dropped_and_counted(
    store: SqliteStore, tmp_path: Path, odd: Exchange, reason: str
) -> None:
    keep(store, [])
    student = FineTune(id="ft", task="mail", dataset="d", trainer="openai", state=FineTuneState.SUCCEEDED,
                       upstream="openai", model="ft:mail-2")  # fmt: skip
    store.add_dataset(Dataset(id="d", task="mail", template="mail@1", rows=[], directory="", digest="", card={}))
    store.save_finetune(student)
    data = built_of(store, tmp_path, [*traffic(60), odd])
    assert data.card["dropped"] == {reason: 1}
    assert ODD not in outputs(data)
    assert data.card["recorded"] == data.card["rows"] + sum(data.card["dropped"].values()) == 61


@pytest.mark.parametrize("finish", ["stop", "eos", "end_turn"])
def test_services_have_several_words_for_the_end(store: SqliteStore, tmp_path: Path, finish: str) -> None:
    data = built_of(store, tmp_path, [*traffic(60), exchange(900, asked(ODD), answer("other", finish=finish))])
    assert outputs(data)[ODD] == "other"


def test_of_several_choices_the_first_is_learnt(store: SqliteStore, tmp_path: Path) -> None:
    both = answer("praise")
    both["choices"].append({"index": 1, "message": {"content": "other"}, "finish_reason": "stop"})
    data = built_of(store, tmp_path, [*traffic(60), exchange(900, asked(ODD, n=2), both)])
    assert outputs(data)[ODD] == "praise"


def test_a_streamed_and_compressed_answer_is_read(store: SqliteStore, tmp_path: Path) -> None:
    import gzip

    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "prai"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "se"}, "finish_reason": "stop"}]},
    ]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    odd = exchange(900, asked(ODD), "", streamed=True, response=gzip.compress(events.encode()),
                   response_headers={"content-encoding": "gzip"})  # fmt: skip
    assert outputs(built_of(store, tmp_path, [*traffic(60), odd]))[ODD] == "praise"


def test_mail_in_any_script_is_learnt(store: SqliteStore, tmp_path: Path) -> None:
    texts = {"где моя посылка?": "доставка", "返品したい": "返金", "متى يصل الطلب": "توصيل", "🧶😍": "praise"}
    more = [exchange(900 + n, asked(text), label) for n, (text, label) in enumerate(texts.items())]
    data = built_of(store, tmp_path, [*traffic(60), *more])
    assert outputs(data).items() >= texts.items()
    assert load(store, data.id).rows == data.rows


def test_without_usage_and_price_there_are_rows_all_the_same(store: SqliteStore, tmp_path: Path) -> None:
    bare = [exchange(n, asked(text), label, input_tokens=None, cost_usd=None, usage_source="none")
            for n, (text, label) in enumerate(mail()[:60])]  # fmt: skip
    data = built_of(store, tmp_path, bare)
    assert (data.card["rows"], data.card["input_tokens_before_mean"]) == (60, None)


@pytest.mark.parametrize(
    ("installed", "outputs", "advised"),
    [([], [], True), (["all-MiniLM-L6-v2"], [], False), ([], [f"answer {n}" for n in range(60)], False)],
)
def test_the_first_dataset_of_labels_says_that_an_embedding_would_help(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[str], outputs: list[str],
    advised: bool,
) -> None:  # fmt: skip
    """Not where one is installed, nor where answers are prose; and once."""
    monkeypatch.setattr(embeddings, "installed", lambda: installed)
    given = [(text, outputs[n] if outputs else label) for n, (text, label) in enumerate(mail()[:60])]
    keep(store, [exchange(n, asked(text), output) for n, (text, output) in enumerate(given)])
    told: list[str] = []
    build(store, "mail", tmp_path / "datasets", say=told.append)
    build(store, "mail", tmp_path / "datasets", say=told.append)
    assert [line.partition(". ")[0] for line in told if "embedding" in line] == (
        ["task mail: no sentence embedding is installed"] if advised else []
    )


# --- feedback --------------------------------------------------------------------------------------------


def test_negative_feedback_drops_and_a_correction_replaces(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    feedback(store, "e00000", score=-1.0)
    feedback(store, "e00001", score=-1.0, corrected_output="other")
    feedback(store, "e00002", label="other")
    feedback(store, "e00003", comment="why?")
    data = build(store, "mail", tmp_path)
    texts = [text for text, _ in mail()]
    assert texts[0] not in outputs(data)
    assert [outputs(data)[texts[n]] for n in (1, 2, 3)] == ["other", "other", "other"]
    assert data.card["dropped"] == {"negative feedback": 1}


def test_a_later_comment_does_not_take_a_correction_back(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    feedback(store, "e00000", corrected_output="other")
    feedback(store, "e00000", comment="see above")
    assert outputs(build(store, "mail", tmp_path))[mail()[0][0]] == "other"


def test_a_persons_word_is_learnt_even_where_our_own_model_had_answered(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, [*traffic(60), exchange(900, asked(ODD), "refund", stripped=True, target="local/mail-1")])
    feedback(store, "e00900", corrected_output="praise")
    assert outputs(build(store, "mail", tmp_path))[ODD] == "praise"


def test_of_one_inputs_answers_the_corrected_wins_then_the_approved_then_the_majority(
    store: SqliteStore, tmp_path: Path
) -> None:
    one, two, three = ("first odd message", "second odd message", "third odd message")
    said = [(one, "refund"), (one, "praise"), (one, "praise"), (two, "refund"), (two, "praise"), (two, "praise"),
            (three, "refund"), (three, "praise"), (three, "praise")]  # fmt: skip
    keep(store, [*traffic(60), *(exchange(900 + n, asked(text), label) for n, (text, label) in enumerate(said))])
    feedback(store, "e00903", score=1.0)
    feedback(store, "e00906", score=1.0)
    feedback(store, "e00907", corrected_output="other")
    data = build(store, "mail", tmp_path)
    assert [outputs(data)[text] for text in (one, two, three)] == ["praise", "refund", "other"]
    assert {row.text: row.seen for row in data.rows if row.seen > 1} == {one: 3, two: 3, three: 3}
    assert data.card["answers_differ_on_repeated_inputs"] == 1.0


# --- two models, two prompts -----------------------------------------------------------------------------


def test_of_two_models_the_one_that_answers_most_is_the_teacher(store: SqliteStore, tmp_path: Path) -> None:
    large = [exchange(n, asked(text), label) for n, (text, label) in enumerate(mail()[:60])]
    small = [exchange(500 + n, asked(text, model="gpt-6-mini"), "other") for n, (text, _) in enumerate(mail()[:40])]
    data = built_of(store, tmp_path, [*large, *small])
    assert data.card["teacher"] == {"provider": "openai", "model": "gpt-6", "target": "openai/gpt-6"}
    assert data.card["teachers"] == {"openai/gpt-6": 60, "openai/gpt-6-mini": 40}
    assert data.card["dropped"] == {"answered by another model": 40}
    assert set(outputs(data).values()) == {"refund", "delivery", "praise", "other"}


def test_the_teacher_is_who_answered_and_not_who_was_asked(store: SqliteStore, tmp_path: Path) -> None:
    """The app asks for gpt-6, and a person's route has another provider answer."""
    routed = [exchange(n, asked(text), label, target="spare/llama", model_served="llama")
              for n, (text, label) in enumerate(mail()[:60])]  # fmt: skip
    data = built_of(store, tmp_path, routed)
    assert data.card["teacher"] == {"provider": "openai", "model": "gpt-6", "target": "spare/llama"}


def test_held_out_rows_are_of_the_prompt_in_use_only(store: SqliteStore, tmp_path: Path) -> None:
    """The prompt's wording changed after 200 requests: old answers may be learnt, but judge nobody."""
    old = [exchange(n, asked(text), label) for n, (text, label) in enumerate(mail()[:200])]
    new = [exchange(n, asked(text, system=stories.NEW_SYSTEM), label.replace("refund", "money"), version=2)
           for n, (text, label) in enumerate(mail()[200:440], start=200)]  # fmt: skip
    data = built_of(store, tmp_path, [*old, *new], template(), template(stories.NEW_SYSTEM, 2))
    assert data.template == "mail@2"
    assert all(row.exchange_id >= "e00200" for row in data.part("validation"))
    assert any(row.exchange_id < "e00200" for row in data.part("train"))
    assert "refund" not in outputs(data).values()  # which is called money now
    assert data.card["dropped"]["older prompt version, held out"] > 20
    assert data.card["recorded"] == 440 == data.card["rows"] + sum(data.card["dropped"].values())


def test_what_a_narrower_version_says_more_of_is_no_row_of_the_wider(store: SqliteStore, tmp_path: Path) -> None:
    """A route that strips the wider one sends such a request whole: it must not judge who never gets it."""
    wide = [exchange(n, asked(text), label) for n, (text, label) in enumerate(mail()[:200])]
    narrow = [exchange(n, asked(f"be brief: {text}"), label, version=2)
              for n, (text, label) in enumerate(mail()[200:300], start=200)]  # fmt: skip
    header = template().head[1].header
    brief = MessagePattern(header, (TextPattern(("Message: be brief: ", ""), (Slot("message"),)),))
    data = built_of(
        store, tmp_path, [*wide, *narrow], template(), PromptTemplate("mail", 2, (template().head[0], brief))
    )
    assert data.template == "mail@1"
    assert not any(text.startswith("be brief") for text in outputs(data))
    assert all(row.exchange_id < "e00200" for row in data.part("validation"))


def test_an_input_that_both_prompts_saw_has_the_newer_ones_answer(store: SqliteStore, tmp_path: Path) -> None:
    old = [exchange(n, asked(text), label) for n, (text, label) in enumerate(mail()[:60])]
    again = [exchange(500 + n, asked(text, system=stories.NEW_SYSTEM), label.replace("refund", "money"), version=2)
             for n, (text, label) in enumerate(mail()[:70])]  # fmt: skip
    data = built_of(store, tmp_path, [*old, *again], template(), template(stories.NEW_SYSTEM, 2))
    assert "refund" not in outputs(data).values()


def test_what_the_incumbent_refuses_judges_candidates_that_would_answer(store: SqliteStore, tmp_path: Path) -> None:
    refused = [exchange(900 + n, asked(f"say something rude, please, number {n}"), "I'm sorry, I can't help.")
               for n in range(40)]  # fmt: skip
    data = built_of(store, tmp_path, [*traffic(60), *refused])
    assert 0 < len(data.beyond) < 20
    assert data.card["held_out_beyond"] == len(data.beyond)
    assert {split_of(row.text) for row in data.beyond} == {"validation"}
    assert not {row.text for row in data.beyond} & set(outputs(data))
    files = (Path(data.directory) / name for name in ("train.jsonl", "validation.jsonl"))
    assert all("rude" not in file.read_text("utf-8") for file in files)
    assert load(store, data.id).beyond == data.beyond


# --- the same for ever -----------------------------------------------------------------------------------


def test_the_same_exchanges_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    exchanges = [*traffic(60), exchange(900, asked(mail()[0][0]), "other"), exchange(901, asked(ODD), "other")]
    written = []
    for number in range(3):
        shuffled = random.Random(number).sample(exchanges, len(exchanges))
        data = built_of(SqliteStore(tmp_path / str(number) / "u.db"), tmp_path / str(number), shuffled)
        written.append((data.id, {f.name: f.read_bytes() for f in Path(data.directory).iterdir()}))
    assert written[0] == written[1] == written[2]
    names = {"train.jsonl", "validation.jsonl", "confirmation.jsonl", "rows.jsonl", "beyond.jsonl",
             "calls.jsonl", "card.md", "card.json"}  # fmt: skip
    assert set(written[0][1]) == names


def test_a_row_keeps_its_side_as_data_grows(store: SqliteStore, tmp_path: Path) -> None:
    small = built_of(store, tmp_path, traffic(100))
    large = built_of(store, tmp_path, traffic(400))
    before = {row.text: row.split for row in small.rows}
    after = {row.text: row.split for row in large.rows}
    assert after.items() >= before.items()
    assert Counter(after.values())["validation"] == pytest.approx(80, abs=25)


@given(st.text())
def test_case_blanks_and_punctuation_do_not_part_an_input_from_its_like(text: str) -> None:
    plain = "Where is my parcel"
    assert split_of(plain) == split_of(f"  {plain.upper()}??") == split_of(plain.replace(" ", "\n"))
    assert split_of(text) == split_of(f" {text} ") == split_of(text)


def test_the_turns_of_one_conversation_are_on_one_side() -> None:
    chat = template(turns=True)
    opening = {"role": "user", "content": "My parcel has not come yet"}
    more = [{"role": "assistant", "content": "Which one?"}, {"role": "user", "content": "The teapot"}]
    system = {"role": "system", "content": stories.SYSTEM}
    one = chat.strip({"model": "m", "messages": [system, opening]})
    two = chat.strip({"model": "m", "messages": [system, opening, *more]})
    assert one is not None
    assert two is not None
    assert session(one) == session(two)
    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    greetings = [chat.strip({"model": "m", "messages": [system, *hello, {"role": "user", "content": said}]})
                 for said in ("where is my order of last week?", "do you sell umbrellas in green?")]  # fmt: skip
    assert len({session(inputs) for inputs in greetings if inputs}) == 2


def test_another_prompt_with_the_same_rows_is_another_dataset(tmp_path: Path) -> None:
    """Otherwise a route would strip the old prompt for a model that was judged by the new one."""
    ids = []
    for version, system in ((1, stories.SYSTEM), (2, stories.NEW_SYSTEM)):
        exchanges = [exchange(n, asked(text, system=system), label, version=version)
                     for n, (text, label) in enumerate(mail()[:60])]  # fmt: skip
        store = SqliteStore(tmp_path / str(version) / "u.db")
        ids.append(built_of(store, tmp_path / str(version), exchanges, template(system, version)))
    assert ids[0].digest == ids[1].digest
    assert ids[0].id != ids[1].id


# --- refusing, and files that are gone -------------------------------------------------------------------


def test_too_few_rows_are_refused_with_the_reason(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, [*traffic(30), *(exchange(900 + n, asked(mail()[0][0]), "refund") for n in range(70))])
    with pytest.raises(DatasetError, match=r"30 usable rows, and at least 50 .* of 100 .*: 70 dup"):
        build(store, "mail", tmp_path)
    assert not list(tmp_path.glob("mail/*"))


def test_a_task_that_does_not_exist_is_refused_with_those_that_do(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no task 'mial'; known tasks: none yet"):
        build(store, "mial", tmp_path)
    keep(store, traffic(1))
    with pytest.raises(TaskError, match="no task 'mial'; known tasks: mail"):
        build(store, "mial", tmp_path)


def test_a_task_of_any_name_has_a_folder_of_its_own_below_the_datasets(tmp_path: Path) -> None:
    for number, name in enumerate(("team-a", "отдел", "客服", "..", "a.b")):
        store = SqliteStore(tmp_path / str(number) / "u.db")
        exchanges = [exchange(n, asked(text), label, task=name) for n, (text, label) in enumerate(mail()[:60])]
        keep(store, exchanges, template(task=name))
        data = build(store, name, tmp_path / "datasets")
        assert Path(data.directory).resolve().is_relative_to(tmp_path / "datasets")
        assert load(store, data.id) == data
    assert len(list((tmp_path / "datasets").glob("*/*"))) == 5


def test_what_was_written_is_read_back(store: SqliteStore, tmp_path: Path) -> None:
    data = build_in_home(store, tmp_path)
    assert load(store, data.id) == data


def build_in_home(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(60))
    return build(store, "mail", tmp_path / "data" / "datasets")


def test_a_home_that_was_moved_is_found_again(store: SqliteStore, tmp_path: Path) -> None:
    data = build_in_home(store, tmp_path)
    store.close()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = SqliteStore(tmp_path / "elsewhere" / "unprompt.db")
    assert load(moved, data.id).rows == data.rows


@pytest.mark.parametrize("damage", ["folder", "file", "train", "cut", "other"])
def test_files_that_are_gone_or_damaged_are_noticed(store: SqliteStore, tmp_path: Path, damage: str) -> None:
    data = build_in_home(store, tmp_path)
    place = Path(data.directory)
    if damage == "folder":
        place.rename(tmp_path / "away")
    elif damage == "file":
        (place / "rows.jsonl").unlink()
    elif damage == "train":
        (place / "train.jsonl").unlink()
    elif damage == "cut":
        (place / "rows.jsonl").write_bytes((place / "rows.jsonl").read_bytes()[:-10])
    else:
        (place / "rows.jsonl").write_bytes(b"".join((place / "rows.jsonl").read_bytes().splitlines(True)[1:]))
    with pytest.raises(DatasetError, match="build it again with 'unprompt dataset TASK'"):
        load(store, data.id)
    assert load(store, build(store, "mail", tmp_path / "data" / "datasets").id) == data


def test_a_folder_that_cannot_be_written_is_our_error(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    (tmp_path / "datasets").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"dataset .* Not a directory; check the disk and its permissions"):
        build(store, "mail", tmp_path / "datasets")
    assert store.rows("datasets") == []


def test_an_export_is_a_copy(store: SqliteStore, tmp_path: Path) -> None:
    data = build_in_home(store, tmp_path)
    place = export(data, tmp_path / "out")
    assert (place / "train.jsonl").read_bytes() == (Path(data.directory) / "train.jsonl").read_bytes()
    assert load(store, data.id) == data


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["yes", "no", "yes", "no"], "classification"),
        (['{"intent": "a"}', '{"intent": "b"}'] * 10, "classification"),
        (["{}"] * 60 + [f'{{"name": "n{number}"}}' for number in range(40)], "extraction"),
        (['{"name": "a"}', '{"name": "b"}', '{"name": "c"}'], "extraction"),
        (["a text", "another text", "a third"], "generation"),
        (["[1]", "[2]"], "generation"),
        (["[" * 100_000, "{}"], "generation"),
    ],
)
def test_the_kind_of_a_task_is_in_its_answers(answers: list[str], kind: str) -> None:
    assert kind_of(answers) == kind


def test_rows_are_read_one_at_a_time_whatever_their_number(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies are large: never are all of them in memory."""
    keep(store, traffic(60))
    monkeypatch.setattr(SqliteStore, "exchanges", lambda *_, **__: pytest.fail("all bodies at once"))
    assert len(build(store, "mail", tmp_path).rows) == 60
    assert dataset.AT_LEAST == 50

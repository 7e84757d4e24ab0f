"""Which answers a person looks at first: those that were rejected, differ, are unsure or rare."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from stories import asked, config_in, exchange, feedback, keep, mail, template, traffic, workshop_in

from gateway.domain.finetune import FineTuneState
from gateway.pipeline import dataset, finetune, sweep
from gateway.pipeline.labelling import review
from gateway.pipeline.review import Opinion, Reviewable, answer_of, inputs_of, queue
from gateway.stores.sqlite import SqliteStore


def nobody(seen: Reviewable) -> None:
    """No candidate is trained."""


def seen(number: int, text: str, answer: str, *, settled: bool = False, rejected: bool = False) -> Reviewable:
    return Reviewable(id=f"e{number:03}", text=text, answer=answer, settled=settled, rejected=rejected)


USUAL = [seen(n, f"letter {n}", ("refund", "delivery")[n % 2]) for n in range(20)]


def test_the_rejected_come_first_then_those_that_were_answered_differently_then_the_rare() -> None:
    found = queue([
        *USUAL,
        seen(30, "rare", "complaint"),
        seen(40, "twice", "refund"), seen(41, "twice", "praise"),
        seen(50, "mostly", "refund"), seen(51, "mostly", "refund"), seen(52, "mostly", "refund"),
        seen(53, "mostly", "delivery"),
        seen(60, "wrong", "refund", rejected=True),
    ], nobody)  # fmt: skip
    assert [(doubt.input, doubt.why) for doubt in found] == [
        ("wrong", ("rejected",)),
        ("twice", ("differing answers", "rare answer")),
        ("mostly", ("differing answers",)),
        ("rare", ("rare answer",)),
    ]
    assert found[2].answers == {"refund": 3, "delivery": 1}
    assert (found[2].answer, found[2].exchange_id) == ("refund", "e052")  # the newest with the usual answer


def test_what_is_in_no_doubt_comes_only_when_all_is_asked_for() -> None:
    assert queue(USUAL, nobody) == []
    assert len(queue(USUAL, nobody, least=0.0)) == 20


def test_what_a_person_has_judged_is_out_of_the_queue_whatever_else_was_answered() -> None:
    twice = [seen(40, "twice", "refund", settled=True), seen(41, "twice", "praise"), seen(42, "twice", "other")]
    assert queue([*USUAL, *twice], nobody) == []


def test_a_candidate_that_is_sure_of_something_else_comes_before_one_that_is_unsure() -> None:
    thinks = {
        "letter 4": Opinion("praise", 0.8),
        "letter 5": Opinion("delivery", 0.3),
        "letter 6": Opinion("x", 0.2),
    }

    def ask(one: Reviewable) -> Opinion:
        return thinks.get(one.text, Opinion(one.answer, 0.99))

    found = queue(USUAL, ask)
    assert [(doubt.input, doubt.why) for doubt in found[:3]] == [
        ("letter 4", ("candidate disagrees", "unsure")),
        ("letter 6", ("candidate disagrees", "unsure")),
        ("letter 5", ("unsure",)),
    ]
    assert found[0].opinion == Opinion("praise", 0.8)


def test_free_texts_are_not_rare_answers() -> None:
    letters = [seen(n, f"letter {n}", f"Dear customer {n}") for n in range(10)]
    assert queue(letters, nobody) == []


ENTRIES = st.lists(
    st.builds(seen, st.integers(0, 99), st.sampled_from("abcde"), st.sampled_from(["x", "y", "z"]),
              settled=st.booleans(), rejected=st.booleans()),
    unique_by=lambda one: one.id,
)  # fmt: skip


@given(ENTRIES)
def test_the_same_answers_give_the_same_queue_and_each_open_input_is_in_it_once(entries: list[Reviewable]) -> None:
    entries.sort(key=lambda one: one.id)
    found = queue(entries, nobody, least=0.0)
    assert found == queue(list(entries), nobody, least=0.0)
    settled = {one.text for one in entries if one.settled}
    assert sorted(doubt.input for doubt in found) == sorted({one.text for one in entries} - settled)
    assert [doubt.worth for doubt in found] == sorted((doubt.worth for doubt in found), reverse=True)
    for doubt in found:
        assert doubt.answer in doubt.answers


# --- in the store ----------------------------------------------------------------------------------------


def test_whole_answers_to_the_tasks_prompt_are_reviewed(store: SqliteStore, tmp_path: Path) -> None:
    letter = asked("an odd letter")
    keep(store, [
        *traffic(40),
        exchange(900, letter, "complaint"),
        exchange(901, letter, "", complete=False),
        exchange(902, letter, "failed", status=500),
        exchange(903, asked("x", system="Another prompt."), "other"),
    ])  # fmt: skip
    (doubt,) = review(store, "mail", tmp_path)
    assert (doubt.exchange_id, doubt.input, doubt.answers) == ("e00900", "an odd letter", {"complaint": 1})


def test_feedback_moves_an_input_to_the_front_or_out(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(40))
    feedback(store, "e00003", score=-1.0)
    assert [(doubt.exchange_id, doubt.why) for doubt in review(store, "mail", tmp_path)] == [
        ("e00003", ("rejected",))
    ]
    feedback(store, "e00003", label="praise")
    assert review(store, "mail", tmp_path) == []
    assert "e00003" not in {doubt.exchange_id for doubt in review(store, "mail", tmp_path, everything=True)}


def test_a_trained_candidate_is_asked_and_finds_the_wrong_answers(tmp_path: Path) -> None:
    """Of 300 letters the model has sorted ten wrongly; the candidate had not seen them when it was asked."""
    store = SqliteStore(tmp_path / "data" / "unprompt.db")
    shop = workshop_in(tmp_path, store, config_in(tmp_path))
    wrong = set(random.Random(7).sample(range(300), 10))
    usual = dict(enumerate(traffic(300)))
    for n in wrong:
        usual[n] = exchange(n, asked(mail()[n][0]), "praise" if mail()[n][1] != "praise" else "refund")
    keep(store, list(usual.values()))
    data = dataset.build(store, "mail", shop.datasets)
    planned = sweep.plan(store, data, {"classifier": [{"features": "word"}]})
    (done,) = finetune.run(store, shop.config, data, planned, shop.models)
    assert done.state is FineTuneState.SUCCEEDED
    found = [int(doubt.exchange_id[1:]) for doubt in review(store, "mail", shop.models)[:10]]
    assert len(wrong & set(found)) >= 9
    store.close()


def test_what_is_read_of_an_exchange() -> None:
    one = exchange(1, asked("where is it"), "delivery")
    inputs = inputs_of(one, [template()])
    assert inputs is not None
    assert (inputs.text, answer_of(one)) == ("where is it", "delivery")
    assert answer_of(exchange(1, asked("x"), {"error": "?"})) is None
    assert answer_of(exchange(1, asked("x"), "  ")) is None
    assert inputs_of(exchange(1, asked("x"), "y", request=b"{oh"), [template()]) is None

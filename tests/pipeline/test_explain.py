"""What is told of one task: its slots, an example, tokens, versions and near misses, from recorded requests."""

from __future__ import annotations

import json

import pytest
import stories
from stories import asked, exchange, keep, mail, template, traffic

from gateway.errors import TaskError
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.differences import plain
from gateway.pipeline.explain import as_json, explain


@pytest.fixture
def told(shop: Workshop) -> Workshop:
    """30 letters with the old prompt, 60 with the new one, 10 that nearly match, one of another kind."""
    new = [exchange(100 + n, asked(text, system=stories.NEW_SYSTEM), label, version=2)
           for n, (text, label) in enumerate(mail()[:60])]  # fmt: skip
    near = [exchange(200 + n, asked(text, system=stories.SYSTEM + " Hurry."), "praise", version=None)
            for n, (text, _) in enumerate(mail()[:10])]  # fmt: skip
    other = exchange(300, {"model": "m", "messages": [{"role": "user", "content": "What is the time?"}]}, "noon",
                     version=None)  # fmt: skip
    keep(shop.store, [*traffic(30), *new, *near, other], template(), template(stories.NEW_SYSTEM, 2))
    return shop


def test_the_version_in_use_with_what_its_requests_hold(told: Workshop) -> None:
    found = explain(told.store, told.config, "mail")
    assert (found.template.name, found.sampled) == ("mail@2", 60)
    (slot,) = found.slots
    assert (slot.slot.name, slot.different, slot.example) == ("message", 60, mail()[59][0])
    assert found.example is not None
    assert found.example.stripped == [{"role": "user", "content": mail()[59][0]}]


def test_versions_with_their_share_and_what_changed(told: Workshop) -> None:
    found = explain(told.store, told.config, "mail")
    assert [(one.template.version, one.requests) for one in found.versions] == [(1, 30), (2, 60)]
    assert [one.share for one in found.versions] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert found.versions[0].changes == []
    assert "[-refund-]{+money+}" in plain(found.versions[1].changes)


def test_near_misses_count_against_the_match_rate_and_have_their_reason(told: Workshop) -> None:
    found = explain(told.store, told.config, "mail")
    assert found.match_rate == pytest.approx(90 / 100)
    (reason,) = found.non_matches
    assert (reason.code, reason.count, reason.exchange_id) == ("literal", 10, "e00209")
    assert "expected" in reason.sentence or "fixed text" in reason.sentence


def test_tokens_are_as_the_upstream_counted_them_or_said_to_be_estimated(told: Workshop) -> None:
    counted = explain(told.store, told.config, "mail").tokens
    assert counted is not None
    assert counted.whole == pytest.approx(40)
    assert (counted.whole_counted, counted.stripped_counted) == (True, False)
    assert 0 < counted.stripped < 20
    uncounted = [exchange(900, asked("hi"), "other", usage_source="none", input_tokens=None, task="post")]
    keep(told.store, uncounted, template(task="post"))
    estimated = explain(told.store, told.config, "post").tokens
    assert estimated is not None
    assert (estimated.whole_counted, estimated.whole > estimated.stripped) == (False, True)


def test_a_template_that_nobody_has_asked_yet(shop: Workshop) -> None:
    shop.store.add_template(template())
    found = explain(shop.store, shop.config, "mail")
    assert (found.sampled, found.example, found.tokens, found.match_rate) == (0, None, None, None)
    assert [(facts.different, facts.example) for facts in found.slots] == [(0, None)]


def test_an_older_version_is_explained_too_and_what_is_not_there_is_refused(told: Workshop) -> None:
    assert explain(told.store, told.config, "mail", 1).sampled == 30
    with pytest.raises(TaskError, match="no template mail@3; its versions are 1, 2"):
        explain(told.store, told.config, "mail", 3)
    with pytest.raises(TaskError, match="no task 'post'"):
        explain(told.store, told.config, "post")


def test_programs_read_the_same(told: Workshop) -> None:
    value = json.loads(json.dumps(as_json(explain(told.store, told.config, "mail"))))
    assert (value["name"], value["template"], value["match_rate"]) == ("mail", "mail@2", 0.9)
    assert value["slots"][0] | {"name": "message", "different": 60} == value["slots"][0]
    assert value["example"]["inputs"] == [["message", mail()[59][0]]]
    assert value["non_matches"][0]["count"] == 10
    assert ["new", "money"] in [piece for line in value["versions"][1]["changes"] for piece in line]

"""Near misses: most of a task's prompt is in the request, and still it does not match."""

from __future__ import annotations

import stories
from stories import asked, template

from gateway.domain.template import PromptTemplate, TextPattern
from gateway.pipeline.misses import near_misses, nearness, probes

MAIL = template()
POST = template("You sort the post of a large bank. Answer with one number from 1 to 9.", task="post")


def test_a_changed_prompt_is_a_near_miss_with_its_reason() -> None:
    bodies = {
        "kinder": asked("hi", system=stories.SYSTEM + " Be kind."),
        "tools": asked("hi", response_format={"type": "json_object"}),
        "one-off": {"messages": [{"role": "user", "content": "Message: what is the time in Lima?"}]},
        "post": asked("hi", system="You sort the post of a large bank. Answer with one number from 1 to 5."),
        "broken": {"messages": "none"},
        "matches": asked("hi"),
    }
    found = near_misses([MAIL], [POST], bodies)
    assert [(miss.exchange_id, miss.code) for miss in found] == [("kinder", "literal"), ("tools", "tools")]
    assert [miss.exchange_id for miss in near_misses([POST], [MAIL], bodies)] == ["post"]


def test_of_several_versions_the_nearest_says_why() -> None:
    new = template(stories.NEW_SYSTEM, 2)
    (miss,) = near_misses([MAIL, new], [], {"a": asked("hi", system=stories.NEW_SYSTEM + " Be kind.")})
    assert miss.template is new


def test_a_long_prompt_is_looked_for_in_as_many_places_as_a_short_one() -> None:
    words = " ".join(f"w{n}" for n in range(10_000))
    long = PromptTemplate("long", 1, (MAIL.head[0].__class__(MAIL.head[0].header, (TextPattern((words,)),)),))
    assert len(probes(long)) == 64
    assert probes(long)[0] == "w0 w1 w2 w3"
    assert nearness(probes(long), words) == 1.0
    assert 0.4 < nearness(probes(long), words[: len(words) // 2]) < 0.6
    assert nearness((), words) == 0.0

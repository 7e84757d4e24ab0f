"""The worker chooses a request's template as a relay does that has read all of them at once."""

from __future__ import annotations

from itertools import permutations

from stories import asked, template

from gateway.domain import layout
from gateway.domain.matching import TemplateIndex
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline.known import Known
from gateway.stores.watched import Standing


def mail(version: int, *literals: str, replaces: str = "") -> PromptTemplate:
    header = layout.read_message({"role": "user", "content": ""})[0]
    slots = tuple(Slot(f"message_{n}") for n in range(len(literals) - 1))
    message = MessagePattern(header, (TextPattern(literals, slots),))
    return PromptTemplate("mail", version, (template().head[0], message), replaces=replaces)


def test_templates_that_come_one_by_one_are_chosen_as_if_all_had_been_there() -> None:
    """The second was written by hand in place of the first, which fits still, and says more than the third."""
    first, second = (
        mail(1, "Message: ", " Thank you."),
        mail(2, "Message: input: ", " Thank you.", replaces="mail@1"),
    )
    every = [first, second, mail(3, "Message: ", "")]
    body = asked("my lamp is broken. Thank you.")
    for order in permutations(every):
        for known_before in range(4):
            known = Known(order[:known_before], {one.name: Standing("trusted") for one in order[:known_before]})
            for one in order[known_before:]:
                known.put(one, Standing("proposed"))
            found, wanted = known.match(body), TemplateIndex(every).match(body)
            assert found is not None
            assert wanted is not None
            assert found.template.name == wanted.template.name == "mail@3"

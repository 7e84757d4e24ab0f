"""Values that quote the prompt: one task, its plain requests cut sharply, the others by what all have."""

from __future__ import annotations

import json

from gateway.domain.matching import TemplateIndex
from gateway.pipeline.infer import Recorded, infer
from gateway.pipeline.mining import Miner, cut_row
from gateway.pipeline.quoting import told_apart

CITIES = ["Rome", "New York", "Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Bern", "Perth", "Accra", "Turin", "Split"]
ASKED = ["food", "museums", "a quiet walk", "jazz, any kind", "books", "the sea", "trains", "tea", "chess", "art"]


def asked(first: str, second: str) -> str:
    return f"Do the two sentences say the same? Yes or no.\n\nOne: {first}\nTwo: {second}\nAnswer:"


PLAIN = [asked(f"{CITIES[i % 12]} for {ASKED[i % 10]}", f"{ASKED[-i % 10]}, {CITIES[i % 7]}") for i in range(24)]
QUOTING = [asked(f"{wish}\nTwo: {city}", f"{city} again") for city, wish in zip(CITIES[5:10], ASKED, strict=False)]


def body(text: str) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def test_one_value_that_holds_a_label_does_not_make_the_label_input_in_all_requests() -> None:
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate(PLAIN + QUOTING)]
    found = infer(requests)
    index = TemplateIndex(found.templates)
    plain = index.match(body(asked("it snows", "there is snow")))
    quoting = index.match(body(asked("it snows\nTwo: no", "there is snow")))
    assert plain is not None
    assert quoting is not None
    assert plain.inputs.values == ("it snows", "there is snow")
    assert quoting.inputs.values == ("it snows\nTwo: no\nTwo: there is snow",)
    assert plain.template.task == quoting.template.task
    assert (plain.template.version, quoting.template.version) == (1, 2)
    assert set(found.assignments.values()) == {(plain.template.task, 1), (plain.template.task, 2)}


def test_where_most_requests_quote_there_is_one_template_for_all() -> None:
    rows = [(text,) for text in PLAIN[:6] + QUOTING]
    (found,) = Miner(rows, "s", [False]).mine()
    assert told_apart(rows, "s", found).quoting is None


def test_all_requests_of_the_template_still_have_one() -> None:
    rows = [(text,) for text in PLAIN + QUOTING]
    (found,) = Miner(rows, "s", [False]).mine()
    main, quoting = told_apart(rows, "s", found)
    assert main.members == list(range(len(PLAIN)))
    assert quoting == found
    assert found.members == list(range(len(rows)))
    assert all(cut_row(found.patterns, row) is not None for row in rows)
    assert "\nTwo: " in main.patterns[0].literals
    assert "\nTwo: " not in found.patterns[0].literals


def test_a_list_whose_items_most_requests_have_two_of_stays_a_list() -> None:
    counts = [2] * 12 + [1, 3, 1, 4, 1]
    texts = [
        "Which of these places is the warmest in March? Name one.\n\n- "
        + "\n- ".join(f"{CITIES[(i + k) % 12]} in {ASKED[(i * k) % 10]}" for k in range(count))
        + "\n\nThe place:"
        for i, count in enumerate(counts)
    ]
    rows = [(text,) for text in texts]
    (found,) = Miner(rows, "s", [False]).mine()
    assert told_apart(rows, "s", found) == (found, None)


def test_the_order_of_the_requests_changes_nothing() -> None:
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate(PLAIN + QUOTING)]
    one, other = infer(requests), infer(requests[::-1])
    assert json.dumps(one.assignments, sort_keys=True) == json.dumps(other.assignments, sort_keys=True)

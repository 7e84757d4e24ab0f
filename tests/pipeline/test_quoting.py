"""Fixed text that values hold too: found all the same, and cut by where what is clear is."""

from __future__ import annotations

import json
import random

from gateway.domain.matching import TemplateIndex
from gateway.domain.template import Slot, TextPattern
from gateway.pipeline.infer import Recorded, infer
from gateway.pipeline.mining import Found, Miner, cut_row
from gateway.pipeline.quoting import refined, separators, weighed

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


def test_where_hardly_a_request_is_plain_there_is_one_template_for_all() -> None:
    rows = [(text,) for text in PLAIN[:2] + QUOTING]
    (found,) = Miner(rows, "s", [False]).mine()
    assert refined(rows, "s", found) == (found, [])


def test_all_requests_of_the_template_still_have_one() -> None:
    rows = [(text,) for text in PLAIN + QUOTING]
    (found,) = Miner(rows, "s", [False]).mine()
    main, quoting = refined(rows, "s", found)
    assert main.members[: len(PLAIN)] == list(range(len(PLAIN)))
    assert len(main.members) < len(rows)
    assert quoting == [found]
    assert found.members == list(range(len(rows)))
    assert all(cut_row(found.patterns, row) is not None for row in rows)
    assert "\nTwo: " in main.patterns[0].literals
    assert "\nTwo: " not in found.patterns[0].literals


def judged(first: str, second: str, third: str) -> str:
    return f"Is the second answer as good as the first? Yes or no.\n\nAsked: {first}\nOne: {second}\nTwo: {third}"


def test_only_the_label_that_a_value_holds_is_left_to_the_values() -> None:
    plain = [judged(ASKED[i % 10], CITIES[i % 12], CITIES[i % 7]) for i in range(24)]
    doubtful = [judged(ASKED[i], f"{CITIES[i]}\nTwo: {CITIES[-i]}", CITIES[i + 1]) for i in range(4)]
    both = judged("art\nOne: tea", "Oslo\nTwo: Lima", "Bern")
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate([*plain, *doubtful, both])]
    index = TemplateIndex(infer(requests).templates)
    values = {}
    for name, text in (("plain", plain[0]), ("doubtful", judged("tea", "Oslo\nTwo: Rome", "Bern")), ("both", both)):
        match = index.match(body(text))
        assert match is not None
        values[name] = (match.template.task, match.inputs.values)
    assert len({task for task, _ in values.values()}) == 1
    assert values["plain"][1] == ("food", "Rome", "Rome")
    assert values["doubtful"][1] == ("tea", "Oslo\nTwo: Rome\nTwo: Bern")
    assert values["both"][1] == ("art\nOne: tea\nOne: Oslo\nTwo: Lima\nTwo: Bern",)


WORDS = ["boat", "noon", "rain", "captain", "leave", "home", "sleep", "never", "old", "quiet", "to", "bring", "and"]


def letter(number: int) -> str:
    """About a hundred characters, always others."""
    return " ".join(random.Random(number).choices(WORDS, k=18))


def test_a_quote_is_told_from_the_label_by_how_long_the_values_usually_are() -> None:
    texts = [asked(letter(i), f"{CITIES[i % 12]} {i}") for i in range(24)]
    quoting = [asked(f"{letter(-i)}\nTwo: {letter(100 + i)}", CITIES[i]) for i in range(1, 5)]
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate(texts + quoting)]
    (template,) = infer(requests).templates
    found = template.strip(body(quoting[0]))
    assert found is not None
    assert found.values == (f"{letter(-1)}\nTwo: {letter(101)}", "New York")
    assert [slot.usual is not None for slot in template.slots] == [True, True]


def test_where_no_request_is_doubtful_none_is_weighed_later() -> None:
    texts = [asked(letter(i), f"{CITIES[i % 12]} {i}") for i in range(24)]
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate(texts)]
    (template,) = infer(requests).templates
    assert template.strip(body(asked(letter(50), "Rome 50"))) is not None
    assert template.strip(body(asked(f"{letter(50)}\nTwo: {letter(51)}", "Rome 50"))) is None


def test_weighing_needs_requests_that_are_clear() -> None:
    pattern = TextPattern(("One: ", "\nTwo: ", ""), (Slot("one"), Slot("two")))
    clear, doubtful = "One: a\nTwo: b", "One: a\nTwo: b\nTwo: c"
    assert weighed(pattern, [clear] * 4) == pattern
    assert weighed(pattern, [clear] * 3 + [doubtful]) == pattern
    assert [slot.usual for slot in weighed(pattern, [clear] * 4 + [doubtful]).slots] == [(1.0, 1.35), (1.0, 1.35)]


def test_what_parts_two_inputs_is_found_in_their_values() -> None:
    pairs = [f"{CITIES[i % 12]} in {ASKED[i % 10]}/{ASKED[-i % 10]} of {CITIES[-i % 12]}" for i in range(1, 30)]
    assert separators([*pairs, "Rome and/or Oslo/tea"]) == ["/"]
    assert separators([*pairs, "Rome, Oslo, tea"]) == []  # one without it
    assert separators([pair.replace("/", " and the ") for pair in pairs]) == []  # what sentences hold anyway
    assert separators([f"{i} for the {letter(i)}" for i in range(1, 30)]) == [" for the "]  # ... behind a number
    assert separators([f'{{"from": "{pair}"}}' for pair in pairs]) == []  # keys of an object are no prompt
    assert separators(pairs[:7]) == []  # too few to tell
    assert separators([letter(i) for i in range(40)]) == []


def listed(question: str, cities: list[str]) -> str:
    return f"Answer by one of the towns below.\n\n{question} \n" + "".join(f"\n- {city}\n" for city in cities)


def test_what_ends_all_texts_may_part_two_inputs_where_the_last_may_be_empty() -> None:
    rows = [(listed(f"Where is {ASKED[i % 10]}{'?!.'[i % 3]}", CITIES[i % 12 :][: i % 5]),) for i in range(40)]
    (found,) = Miner(rows, "s", [False]).mine()
    assert found.patterns[0].literals == ("Answer by one of the towns below.\n\nWhere is ", " \n", "")
    rows += [(listed(f"Where is {wish}? \nOr what is near?", CITIES[:3]),) for wish in ASKED[:4]]
    (found,) = Miner(rows, "s", [False]).mine()
    main, quoting = refined(rows, "s", found)
    assert main.patterns[0].literals[-2:] == (" \n", "")
    assert (len(main.members), quoting) == (44, [])  # by how long questions usually are


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
    assert refined(rows, "s", found) == (found, [])


def test_the_order_of_the_requests_changes_nothing() -> None:
    requests = [Recorded(str(i), float(i), body(text), "key") for i, text in enumerate(PLAIN + QUOTING)]
    one, other = infer(requests), infer(requests[::-1])
    assert json.dumps(one.assignments, sort_keys=True) == json.dumps(other.assignments, sort_keys=True)


def played(game: str, action: str) -> str:
    return f"You are playing {game}.\nYour last action '{action}' was illegal.\nTry another one."


def test_a_sign_whose_other_half_stands_in_the_text_between_is_the_prompts() -> None:
    """Beside one slot for both values the last quote looked like theirs."""
    plain = [played(ASKED[i % 10], CITIES[i % 12]) for i in range(24)]
    quoting = [played(f"{ASKED[i]}.\nYour last action 'go", CITIES[i]) for i in range(6)]
    rows = [(text,) for text in plain + quoting]
    (found,) = Miner(rows, "s", [False]).mine()
    assert found.patterns[0].literals[-1].startswith(" was illegal")
    main, _ = refined(rows, "s", found)
    assert main.patterns[0].literals[1:] == (".\nYour last action '", "' was illegal.\nTry another one.")


def mended(answer: str, feedback: str, fix: str) -> str:
    return f"Mend the plan.\nANSWER: {answer}\nFEEDBACK: {feedback}\nFIX: {fix}"


def test_a_label_is_found_though_doubtful_requests_were_cut_where_it_lies_elsewhere() -> None:
    fix = "leave it as it is, and ask again when the {} is here"
    plain = [mended(CITIES[i % 12], CITIES[i % 7], fix.format(ASKED[i % 10])) for i in range(24)]
    doubtful = [mended(f"to {CITIES[i]} and back\nFIX: {ASKED[i]}", "no", ASKED[-i]) for i in range(4)]
    texts = [*plain, *doubtful]
    pattern = weighed(TextPattern(("Mend the plan.\nANSWER: ", "\nFIX: ", ""), (Slot("a"), Slot("b"))), texts)
    cut = pattern.cut(doubtful[0])
    assert cut is not None
    assert "FEEDBACK" in cut[1]
    main, _ = refined([(text,) for text in texts], "s", Found((pattern,), list(range(len(texts)))))
    assert main.patterns[0].literals == ("Mend the plan.\nANSWER: ", "\nFEEDBACK: ", "\nFIX: ", "")

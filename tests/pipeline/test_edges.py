"""Where a value begins and ends: signs, quotes, words, lists, and slots that may be empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.edges import Gap, settled
from gateway.pipeline.literals import field_literals

MANY = 20
TOWNS = ["Rome", "Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Bern", "Perth", "Accra", "Porto", "Riga", "Turin"]


def gap(left: str, values: list[str], right: str) -> Gap:
    """The gap with its values repeated to a number from which on words are no accident."""
    return Gap(left, tuple(values[i % len(values)] for i in range(max(MANY, len(values)))), right)


def edges(settled_gap: Gap) -> tuple[str, str]:
    return settled_gap.left, settled_gap.right


@pytest.mark.parametrize(
    ("values", "right", "left_over"),
    [
        # what ends sentences belongs to them; what follows titles, code and bare words is the prompt's
        (["The train to Oslo was late again", "Nobody in Bern ever looks at a map"], ".\n\nGerman:", "\n\nGerman:"),
        (["Trains and Their Towns", "A History of Tea"], ".\nBe brief.", ".\nBe brief."),
        (["def area(r):\n    return r * r", "for x in y:\n    print(x)"], ". Fix it.", ". Fix it."),
        (["rome", "a map of bern"], ". Be brief.", ". Be brief."),
        (["The train to Oslo was late again.", "Nobody in Bern ever looks at a map!"], ".\nGo.", ".\nGo."),
        (
            ["The train was late, so we went on foot", "A sentence that ends in dots has two more.."]
            + [f"There are {n} trains a day and they are late" for n in range(12)],
            ".\nGo.",
            "\nGo.",
        ),
        (["The train to Oslo was late again", "Nobody in Bern ever looks at a map"], "..\nGo on.", ".\nGo on."),
        (["The train to Oslo was late again", "Nobody in Bern ever looks at a map"], "...\nGo on.", "...\nGo on."),
        # a quote is the values' when they opened it
        (['He said: "come', 'They cried "no'], '"\nWho?', "\nWho?"),
        (['the word "tea"', "plain"], '" is what?', '" is what?'),
        (["the captain", "Mary"], "'s ship", "'s ship"),
    ],
)
def test_a_sign_behind_a_slot(values: list[str], right: str, left_over: str) -> None:
    assert edges(settled(gap("Text: ", values, right))) == ("Text: ", left_over)


@pytest.mark.parametrize(
    ("left", "values", "right", "expected"),
    [
        # the other half of a bracket tells whose it is
        ("Code: ", ["f(x", "print(area(2)", "g(a, b"], ")\n\nOutput:", ("Code: ", "\n\nOutput:")),
        ("Object: {", ['"a": 1}', '"b": {}}'], "\nExplain it.", ("Object: ", "\nExplain it.")),
        ("Call ", ["f(g(x", "h((y"], ")).", ("Call ", ".")),
        ("Object: {", ['"a": 1', '"b": {}'], "}.\nExplain it.", ("Object: ", ".\nExplain it.")),
        ("The set {", ["a, b", "1"], "}.", ("The set {", "}.")),
        ("The town (", ["Rome", "Oslo"], ") is old.", ("The town (", ") is old.")),
        ("The call (", ["f(x", "g(y"], ") is old.", ("The call (", ") is old.")),
        ("Text: ", ["a) first", "plain"], ") and more", ("Text: ", ") and more")),
    ],
)
def test_a_bracket_beside_a_slot(left: str, values: list[str], right: str, expected: tuple[str, str]) -> None:
    assert edges(settled(gap(left, values, right))) == expected


def test_a_message_that_is_all_value_keeps_its_last_sign() -> None:
    assert edges(settled(gap("", ["why", "Is it so? And why", "rome"], "?"))) == ("", "")
    assert edges(settled(gap("", ["why", "rome"], "? Be brief."))) == ("", "? Be brief.")


def test_words_in_front_of_a_slot_when_there_are_few_samples() -> None:
    few = ("please", "I do, twice", "tomorrow", "or no")
    assert settled(Gap("Message: Yes ", few, "\nAnswer:")).left == "Message: "
    sentence = "You have the tools below and may call at most "
    assert settled(Gap(sentence, ("3", "4", "11", "7"), " of them.")).left == sentence
    assert settled(Gap("whats the difference between ", few, "")).left == "whats the "
    assert settled(Gap("whats the difference between ", few * 3, "")).left == "whats the difference between "


def test_a_small_letter_in_front_of_capitals_is_the_prompts() -> None:
    games = ("Chess", "Go", "Nine Men's Morris", "Hex")
    assert settled(Gap("You are playing ", games, ".\nYour move:")).left == "You are playing "
    assert settled(Gap("You are playing ", ("Chess", "chess", "Go", "Hex"), ".")).left == "You are "
    assert settled(Gap("Name: Sir ", games, ".")).left == "Name: "


def test_a_label_behind_a_slot_is_no_part_of_the_value() -> None:
    assert settled(Gap("Task: ", ("f(x)", "g(y)", "h(z)"), "Response: ")).right == "Response: "
    assert settled(Gap("Task: ", ("f(x)", "g(y)", "h(z)"), "Yes, do")).right == ", do"


@pytest.mark.parametrize(
    ("left", "values", "right", "expected"),
    [
        ("Facts:\n\n- ", ["red\n\n- blue", "one", "up\n\n- down\n\n- left"], "\nEnd.", ("Facts:\n", "End.")),
        ("Context:\n[1] ", ["red\n\n[2] blue", "one", "up\n\n[2] down"], "\n\n---\n", ("Context:\n", "---\n")),
        ("Read.\nDoc 1:\n", ["a\n---\nDoc 2:\nb", "c", "d\n---\nDoc 2:\ne"], "\n---\nNow", ("Read.\n", "Now")),
        # turns joined by new lines: the one behind the last turn is the prompt's
        ("Chat:\nUser: ", ["hi\nBot: yo\nUser: bye\nBot: so", "a\nBot: b\nUser: c"], "\nEnd", ("Chat:\n", "\nEnd")),
        ("Schema:\nTABLE ", ["a\n\nTABLE b", "c", "d\n\nTABLE e"], "\n\nQuery:", ("Schema:\n", "\n\nQuery:")),
        # one value in ten that quotes the label is no list
        ("Question: ", [*TOWNS, "x\nQuestion: y"], "\nAnswer:", ("Question: ", "\nAnswer:")),
    ],
)
def test_the_marker_of_a_first_item_and_the_end_of_the_last_belong_to_the_list(
    left: str, values: list[str], right: str, expected: tuple[str, str]
) -> None:
    assert edges(settled(gap(left, values, right))) == expected


@pytest.mark.parametrize(
    ("prompt", "items"),
    [
        ("Context:\n{}---\nAnswer now.", "- {}\n"),
        ("The options are:\n{}", "\n- {}\n"),
        ("Facts, if any:\n{}\nWrite a line on them.", "\n\n- {}\n\n"),
        ("Read all of this.\n```\n\n{}\n\n```\nWhat is it?", "Document:\n{}\n---\n"),
    ],
)
def test_a_list_that_may_be_empty_is_one_slot_with_all_its_separators(prompt: str, items: str) -> None:
    lists = ["".join(items.format(town) for town in TOWNS[i % 7 : i % 7 + i % 4]) for i in range(24)]
    assert field_literals([prompt.format(value) for value in lists]) == prompt.split("{}")


texts = st.text(alphabet='ab A."\n-1', max_size=14)


@given(texts, st.lists(texts, min_size=2, max_size=20), texts)
def test_no_rule_changes_what_a_sample_says(left: str, values: list[str], right: str) -> None:
    after = settled(Gap(left, tuple(values), right))
    assert [after.left + v + after.right for v in after.values] == [left + v + right for v in values]


def test_a_full_stop_ends_no_sentence_of_another_script() -> None:
    values = ["市政污水收集与处理高效管理模式", "中国古代文学学科的知识背景", "爵士钢琴的音乐理论与创作实践"]
    assert edges(settled(gap("Topic: ", values, ".\nGo."))) == ("Topic: ", ".\nGo.")


def test_a_document_whose_paragraphs_begin_alike_is_no_list() -> None:
    tables = ["CREATE TABLE a (\n  x\n);\n\nCREATE TABLE b (\n  y\n);", "CREATE TABLE c (\n  z\n);"]
    inner = [table.removeprefix("CREATE TABLE ").removesuffix("\n);") for table in tables]
    settled_gap = settled(gap("Schema:\n```\nCREATE TABLE ", inner, "\n);\n```\nGo."))
    assert edges(settled_gap) == ("Schema:\n```\n", "\n```\nGo.")
    assert settled_gap.values[:2] == tuple(tables)


def test_a_label_that_values_quote_begins_no_list() -> None:
    values = ["red", "blue", "green", "up", "down", "say so\nQuestion: left", "be brief.\n\nQuestion: why"]
    left = "Answer in a word, be brief.\n\nQuestion: "
    assert edges(settled(gap(left, values, "\nAnswer:"))) == (left, "\nAnswer:")


def test_a_fence_begins_no_list_though_values_hold_blocks_of_code() -> None:
    values = ["Call it:\n\n```\nrun()\n```\nand wait", "Nothing works", "Try\n\n```\nls -l\n```\nfirst"]
    fenced = gap("Sum up the text in backticks.\n\n```\n", values, "\n```\nBe brief.")
    assert settled(fenced) == fenced


def test_a_dialogue_may_begin_within_a_line() -> None:
    turns = ["Hi\nAgent: Yes?\nUser: My card is gone\nAgent: I see", "Help\nAgent: Yes?\nUser: Stop it", "Hello"]
    chat = settled(gap("<chat>User: ", turns, "</chat>\nIs the user angry?"))
    assert edges(chat) == ("<chat>", "</chat>\nIs the user angry?")
    assert chat.values[2] == "User: Hello"
    assert edges(settled(gap("<chat>User: ", TOWNS, "</chat>"))) == ("<chat>User: ", "</chat>")


def test_blocks_that_bring_their_own_line_ends_keep_them() -> None:
    places = ["Rome", "Oslo\n\nLima", "Bern\n\nRiga\n\nTurin"]
    options = settled(gap("Options:\n\n", places, "\n\n\nWhich?"))
    assert edges(options) == ("Options:\n", "\n\nWhich?")
    assert options.values[:2] == ("\nRome\n", "\nOslo\n\nLima\n")
    assert edges(settled(gap("Text:\n\n", places, "\n\nWhich?"))) == ("Text:\n\n", "\n\nWhich?")


def test_the_line_that_ends_every_item_is_the_lists() -> None:
    functions = ["f()\nreturn it\n\ng()", "h()", "k()\nreturn it\n\nl()\nreturn it\n\nm()"]
    listed = settled(gap("Document these:\n\n", functions, "\nreturn it\n\nBe brief."))
    assert edges(listed) == ("Document these:\n", "\nBe brief.")
    assert listed.values[0] == "\nf()\nreturn it\n\ng()\nreturn it\n"


def test_a_word_right_behind_a_value_is_found() -> None:
    texts = [
        f"Task: {name}Response: {town}" for name, town in zip(["raise", "itSelf", "NO"] * 4, TOWNS, strict=True)
    ]
    assert field_literals(texts * 2) == ["Task: ", "Response: ", ""]


def test_a_numbered_list_may_begin_within_a_line() -> None:
    lists = [f"{TOWNS[i]}\n\n" + "".join(f"[{n}] {TOWNS[-n]}\n\n" for n in range(2, 2 + i % 4)) for i in range(10)]
    values = [one.removesuffix("\n\n") for one in lists]
    settled_gap = settled(gap('{"documents": [1] ', values, "\n\n}\nAnswer:"))
    assert edges(settled_gap) == ('{"documents": ', "}\nAnswer:")
    assert settled_gap.values[1] == f"[1] {TOWNS[1]}\n\n[2] {TOWNS[-2]}\n\n"
    single = settled(gap('{"rank": [1] ', TOWNS, "\n\n}\nAnswer:"))
    assert edges(single) == ('{"rank": [1] ', "\n\n}\nAnswer:")


def test_inputs_that_a_prompt_counts_are_no_list() -> None:
    pairs = [f"{a}\nText 2: {b}" for a, b in zip(TOWNS, reversed(TOWNS), strict=True)]
    assert edges(settled(gap("Compare.\nText 1: ", pairs, "\nSame?"))) == ("Compare.\nText 1: ", "\nSame?")
    lists = [*pairs[:6], *(f"{pair}\nText 3: {pair[:4]}" for pair in pairs[6:])]
    assert edges(settled(gap("Compare.\nText 1: ", lists, "\nSame?"))) == ("Compare.\n", "Same?")


@pytest.mark.parametrize(
    ("left", "values", "right", "expected"),
    [
        # a path has its slash, a document the mark of its title
        ("## Code: /", ["app/main", "var/log/mail"], ".py\n", ("## Code: ", ".py\n")),
        ("Paths: ('/", ["app/main", "tmp/x"], "')\n", ("Paths: ('", "')\n")),
        ("## Design\n# ", ["Tea\nIt grows", "Maps\nThey fold\n## Why"], "\n## Task", ("## Design\n", "\n## Task")),
        ("## Topic\n# ", ["Tea", "Maps"], "\nGo on.", ("## Topic\n# ", "\nGo on.")),
        ("Yes/", ["no", "and/or"], "?", ("Yes/", "?")),
        # sentences in a loop, each with a blank behind it; two blanks are a break where the paragraph goes on
        ("Text: ", ["It rains. It pours.", "Nothing."], "  \n\nWho?", ("Text: ", " \n\nWho?")),
        ("Town: ", ["Rome", "Oslo"], "  \nDay: 1", ("Town: ", "  \nDay: 1")),
        # the items of an indented list are sentences, not lines of code
        (
            "Facts:",
            ["\n  - He never saw the old town again", "\n  - It was a day\n  - They left by the sea"],
            ".\n",
            ("Facts:", "\n"),
        ),
    ],
)
def test_what_values_begin_and_end_with(
    left: str, values: list[str], right: str, expected: tuple[str, str]
) -> None:
    assert edges(settled(gap(left, values, right))) == expected


def test_a_document_with_lines_is_no_list_of_blocks() -> None:
    documents = ["It rains.\n\nMore:\n- tea\n- sea", "One line.\n\nAnother one.\nA third."]
    assert edges(settled(gap("---Data---\n\n", documents, "\n\n\n---Goal---"))) == (
        "---Data---\n\n",
        "\n\n\n---Goal---",
    )

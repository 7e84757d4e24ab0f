"""What changed between two texts: by words, with what nobody would see made visible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.differences import changes, plain, shorten


def test_a_changed_word_stands_in_its_line_and_lines_alike_are_left_out() -> None:
    old = "Sort the mail.\nOne.\nTwo.\nThree.\nFour.\nSay NOTE or CRY.\nBe quick."
    new = old.replace("NOTE", "REMARK")
    assert plain(changes(old, new)) == (
        "Sort the mail.\n… 3 lines alike\nFour.\nSay [-NOTE-]{+REMARK+} or CRY.\nBe quick."
    )


def test_lines_that_came_and_went() -> None:
    assert plain(changes("a\nb", "a\nb\nAlways be kind.")) == "a\nb\n{+Always be kind.+}"
    assert plain(changes("a\nAlways be kind.\nb", "a\nb")) == "a\n[-Always be kind.-]\nb"


def test_blanks_that_nobody_would_see_are_seen() -> None:
    assert plain(changes("Message: x", "Message:  x")) == "Message:[-·-]{+··+}x"
    assert plain(changes("a", "a\n")) == "a\n{+↵+}"
    assert plain(changes("a", "a \t\r")) == "a{+·→␍+}"


def test_long_lines_are_shortened_around_the_change() -> None:
    said = plain(changes("word " * 500 + "old", "word " * 500 + "new"))
    assert said.endswith("[-old-]{+new+}")
    assert len(said) < 200


def test_huge_blocks_are_compared_as_lines() -> None:
    assert plain(changes("a " * 5000, "b " * 5000)).startswith("[-a a")


@given(st.text("ab \n\t", max_size=30), st.text("ab \n\t", max_size=30))
def test_texts_differ_exactly_when_something_is_shown(old: str, new: str) -> None:
    assert bool(changes(old, new)) == (old != new)


@given(st.text(max_size=200), st.integers(9, 80))
def test_what_is_shortened_keeps_its_ends_and_says_how_much_is_left_out(text: str, most: int) -> None:
    short = shorten(text, most)
    assert len(short) <= most + 24
    assert short == text or f"({len(text) - most:,} more)" in short

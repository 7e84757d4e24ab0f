"""The table of faults in docs/faults.md: every case has its line, and every line its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Line(NamedTuple):
    """One line of the table."""

    case: int
    expected: str
    result: str
    tests: list[tuple[str, str]]


def lines() -> list[Line]:
    found = []
    for text in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if text.startswith("|") and cells[0].isdigit():
            found.append(Line(int(cells[0]), cells[1], cells[2], NODE.findall(text)))
    return found


def source(file: str, name: str) -> str:
    """The test with its decorators and its parameters; empty where it does not exist."""
    path = ROOT / file
    text = path.read_text("utf-8") if path.exists() else ""
    before, found, after = text.partition(f"def {name}(")
    return before.rpartition("\n\n\n")[2] + found + after.partition("\n\n\n")[0] if found else ""


def test_every_case_has_one_line_in_order() -> None:
    assert [line.case for line in lines()] == list(range(1, 51))


@pytest.mark.parametrize("line", lines(), ids=lambda line: str(line.case))
def test_a_line_says_what_is_expected_what_is_seen_and_which_tests_show_it(line: Line) -> None:
    assert len(line.expected) > 10
    assert re.fullmatch(r"held|(held in part|not held): \S.*", line.result)
    assert [test for test in line.tests if not source(*test)] == []
    assert line.tests or line.result.startswith("not held")
    if line.result == "held":
        assert [test for test in line.tests if "xfail" in source(*test)] == []


def test_every_test_of_a_fault_that_is_expected_to_fail_is_told_of() -> None:
    defined = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
    here = [file for file in sorted(Path(__file__).parent.glob("test_*.py")) if file != Path(__file__)]
    names = [
        (f"tests/faults/{file.name}", name) for file in here for name in defined.findall(file.read_text("utf-8"))
    ]
    told = {test for line in lines() if line.result != "held" for test in line.tests}
    assert len(names) > 50
    assert [test for test in names if "xfail" in source(*test) and test not in told] == []

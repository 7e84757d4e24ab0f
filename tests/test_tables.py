"""Tables in terminals with room for them, and without."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway import tables

COLUMNS = ("task", "calls", "fits", "next")
ROWS = [("mail@1", "12,345", "99.1%", "classification; served by mail-7: 95 % of the requests"),
        ("notes@4", "7", "-", "")]  # fmt: skip


def printed(width: int) -> str:
    told = io.StringIO()
    made = tables.table("Tasks", COLUMNS, ROWS, sentences=40)
    made.caption = "fits: share of the newest requests"
    Console(file=told, width=width, color_system=None).print(made)
    return told.getvalue()


def test_where_there_is_room_a_row_is_a_line() -> None:
    (line,) = [line for line in printed(120).splitlines() if "mail@1" in line]
    assert line.split("  ") != [line]
    assert all(cell in line for cell in ROWS[0])


@pytest.mark.parametrize("width", [20, 30, 50, 62])
def test_where_there_is_none_no_figure_is_cut(width: int) -> None:
    lines = [line.strip() for line in printed(width).splitlines()]
    assert lines[0] == "Tasks"
    assert "mail@1" in lines
    assert max(map(len, lines)) <= width
    words = " ".join(lines)
    for cell in ("calls 12,345", "fits 99.1%", ROWS[0][3], "calls 7", "fits: share of the newest requests"):
        assert cell in words

"""Figures as people read them, in the terminal and on pages."""

from __future__ import annotations

import math


def figure(value: float | None, form: str = "{:,.2f}") -> str:
    """A hyphen for what is not known."""
    return "-" if value is None or math.isnan(value) else form.format(value)


def share(value: float | None) -> str:
    """A share from 0 to 1 as percent."""
    return figure(value, "{:.1%}")


def duration(seconds: float | None) -> str:
    """In the largest unit that leaves a figure before the point."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

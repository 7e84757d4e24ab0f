"""HTML and SVG as values: whatever is not markup already is escaped, so that no text can become any."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup; every other text is data."""

    __slots__ = ()


Child = str | Markup | None


def el(name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. In attributes `class_` is `class`, other underscores are hyphens; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """One after the other; None is nothing."""
    there = [child for child in children if child is not None]
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in there))


def _text(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

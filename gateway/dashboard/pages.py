"""The pages themselves, from what is known: HTML without a script. All texts are data, and escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import quote

from gateway import __version__
from gateway.dashboard.facts import Board, Page
from gateway.domain.template import MessagePattern, PromptTemplate
from gateway.figures import duration, figure, share
from gateway.pipeline.decisions import ACTIONS, Flip
from gateway.pipeline.explain import heading
from gateway.pipeline.markup import Child, Markup, el, join
from gateway.pipeline.savings import Saved
from gateway.pipeline.serving import serves
from gateway.raised import Told

_MOST_DAYS = 30
_VALUE_CHARS = 400


def board(found: Board) -> str:
    """All tasks: what they cost and save, what is wrong, what was decided."""
    return _whole(
        "unprompt",
        _header("unprompt", f"version {__version__}, {_when(found.at)} UTC; this page reloads every 30 s", None),
        _totals(found),
        _alarms(found.rows, found.told),
        el("h2", "Tasks"),
        _tasks(found) if found.rows else el("p", "None yet: a handful of requests with the same prompt make one."),
        _traffic(found.days),
        _history(found.flips, with_task=True),
        refresh=30,
    )


def task(found: Page) -> str:
    """One task whole."""
    row, template = found.found.row, found.found.template
    facts = (row["kind"] or "kind not known yet", serves(row), row["next"] and f"next: {row['next']}")
    about = "; ".join(filter(None, facts))
    return _whole(
        row["name"],
        _header(template.name, about, "/unprompt/"),
        _tiles(
            [
                ("Requests", f"{row['exchanges']:,}", f"{row['stripped']:,} stripped"),
                ("Match the prompt", share(found.found.match_rate), "of the newest 1,000"),
                ("Agrees with the incumbent", *_agreement(found.told)),
                ("Saved", _usd(found.saved.usd), f"{duration(found.saved.seconds)}, net of audits"),
            ]
        ),
        _alarms([row], {row["name"]: found.told}),
        *(el("p", one["sentence"], class_="soft") for one in row["shutdowns"]),
        _savings(found.saved),
        _history(found.flips, with_task=False),
        el("h2", "Prompt"),
        el("p", f"{template.fixed_words:,} fixed words go when a request is stripped; slots stay.", class_="soft"),
        el("div", *_prompt(template), class_="box prompts"),
        _slots(found),
        _example(found),
        _versions(found),
    )


# --- the frame ---------------------------------------------------------------------------------------------


def _whole(title: str, *parts: Child, refresh: int | None = None) -> str:
    style = resources.files("gateway.pipeline").joinpath("report.css").read_text("utf-8")
    own = resources.files("gateway.dashboard").joinpath("pages.css").read_text("utf-8")
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    head = el(
        "head",
        Markup(
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        ),
        el("title", title),
        el("style", Markup(style + own)),
    )
    return f'<!doctype html>\n<html lang="en">{head}{el("body", *parts)}</html>\n'


def _header(title: str, about: str, back: str | None) -> Markup:
    way = el("a", "All tasks", href=back, class_="small") if back else None
    return el("header", el("div", way, el("h1", title), el("div", about, class_="soft small")))


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> Markup:
    return el("div", *(
        el("div", el("div", what, class_="what"), el("div", value, class_="value"),
           el("div", beside, class_="beside"), class_="tile")
        for what, value, beside in tiles
    ), class_="tiles")  # fmt: skip


def _table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Child]]) -> Markup:
    """Columns with whether they are figures. On a narrow screen cells stand below each other, each with the name of
    its column (pages.css)."""
    named = [(name, "right" if figures else None) for name, figures in columns]
    head = el("tr", *(el("th", name, class_=kind) for name, kind in named))
    body = [
        el(
            "tr",
            *(el("td", cell, class_=kind, data_name=name) for cell, (name, kind) in zip(row, named, strict=True)),
        )
        for row in rows
    ]
    return el("div", el("table", head, *body, class_="stacks"), class_="box")


def _usd(value: float | None) -> str:
    if value is None:
        return "-"
    small = round(value, 4)  # audits may cost what they save, and then a rounding error is all that is left
    return f"{small or 0.0:,.2f} USD" if small == 0 or abs(small) >= 1 else f"{small:,.4f} USD"


def _when(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}"


def _link(name: str) -> str:
    return f"/unprompt/tasks/{quote(name, safe='')}"


# --- all tasks ---------------------------------------------------------------------------------------------


def _totals(found: Board) -> Markup:
    asked = sum(row["exchanges"] for row in found.rows)
    stripped = sum(row["stripped"] for row in found.rows)
    usd = [saved.usd for saved in found.saved.values() if saved.usd is not None]
    seconds = [saved.seconds for saved in found.saved.values() if saved.seconds is not None]
    return _tiles(
        [
            ("Tasks", f"{len(found.rows):,}", f"{found.served:,} with a model of their own"),
            (
                "Requests of tasks",
                f"{asked:,}",
                f"{share(stripped / asked if asked else None)} without their prompt",
            ),
            ("Saved", _usd(sum(usd) if usd else None), "net of audits and shadows"),
            ("Saved time", duration(sum(seconds) if seconds else None), "that clients did not wait"),
        ]
    )


def _alarms(rows: Sequence[dict[str, Any]], told: dict[str, Told]) -> Markup | None:
    items: list[Markup] = []
    for row in rows:
        kinds = [kind.replace("_", " ") for kind in told.get(row["name"], Told()).alarms]
        says = "; ".join(filter(None, [", ".join(kinds), row["alarm"]]))
        if says:
            items.append(el("li", el("a", row["name"], href=_link(row["name"])), f": {says}"))
    return el("div", el("strong", "Alarms"), el("ul", *items), class_="alarms") if items else None


def _tasks(found: Board) -> Markup:
    columns = (("task", False), ("requests", True), ("stripped", True), ("fits", True), ("agrees", True),
               ("saved USD", True), ("now and next", False))  # fmt: skip
    return _table(columns, [
        (
            join(el("a", f"{row['name']}@{row['version']}", href=_link(row["name"])),
                 el("div", row["kind"] or "", class_="sub")),
            f"{row['exchanges']:,}",
            share(row["stripped"] / row["exchanges"] if row["exchanges"] else None),
            share(row["match_rate"]),
            _agreement(found.told.get(row["name"], Told()))[0],
            _usd(row["saved_usd"]).removesuffix(" USD"),
            _now_and_next(row),
        )
        for row in sorted(found.rows, key=lambda row: -row["exchanges"])
    ])  # fmt: skip


def _now_and_next(row: dict[str, Any]) -> Markup:
    """Who serves the task, and the work in progress beside it."""
    lines = [line for line in (serves(row), row["next"]) if line]
    return join(*(el("div", line, class_="sub" if number else None) for number, line in enumerate(lines)))


def _agreement(told: Told) -> tuple[str, str]:
    if told.agreement is None:
        return "-", "nothing audited yet"
    low, mean, high = told.agreement
    return share(mean), f"{share(low)} to {share(high)}, by audits"


def _traffic(days: Sequence[tuple[float, int, int]]) -> Markup | None:
    """Requests of each day, those without their prompt filled."""
    shown = days[-_MOST_DAYS:]
    if not shown:
        return None
    title = f"Requests a day: {_day(shown[0][0])} to {_day(shown[-1][0])}; the coloured part went out stripped"
    bars = [
        (_day(at), asked, stripped, f"{asked:,} requests, {stripped:,} stripped") for at, asked, stripped in shown
    ]
    return join(el("h2", "Traffic"), el("p", title, class_="soft small"), el("div", _bars(bars), class_="box"))


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%d %b}"


def _bars(bars: Sequence[tuple[str, float, float, str]]) -> Markup:
    """Columns with a filled part each; label, height, filled height, and what it says."""
    wide, high, gap = 1000.0, 160.0, 0.25
    step = wide / max(len(bars), 12)
    most = max((height for _, height, _, _ in bars), default=0) or 1
    drawn: list[Markup] = []
    for number, (name, height, filled, says) in enumerate(bars):
        at, width = number * step + step * gap / 2, step * (1 - gap)
        full, part = high * height / most, high * max(filled, 0) / most
        drawn.append(el(
            "g", el("title", f"{name}: {says}"),
            el("rect", x=at, y=high - full, width=width, height=full, class_="column"),
            el("rect", x=at, y=high - part, width=width, height=part, class_="filled"),
        ))  # fmt: skip
        if number % max(1, len(bars) // 10) == 0:
            drawn.append(el("text", name, x=at + width / 2, y=high + 24, class_="tick middle"))
    return el("svg", *drawn, viewBox=f"0 0 {wide:g} {high + 32:g}", role="img")


# --- decisions ---------------------------------------------------------------------------------------------


def _history(flips: Sequence[Flip], *, with_task: bool) -> Markup | None:
    if not flips:
        return None
    columns = [("when, UTC", False), *([("task", False)] if with_task else []), ("what", False), ("model", False),
               ("why", False)]  # fmt: skip
    rows = [
        (
            el("span", _when(flip.at), class_="when"),
            *([el("a", flip.task, href=_link(flip.task))] if with_task else []),
            el("span", ACTIONS.get(flip.action, flip.action), class_=f"what-{flip.action}"),
            flip.target or "-",
            join(flip.reason, join(" ", el("a", "report", href=f"/unprompt/reports/{quote(flip.report, safe='')}"))
                 if flip.report else None),
        )
        for flip in flips
    ]  # fmt: skip
    return join(el("h2", "Decisions"), _table(columns, rows))


# --- one task ----------------------------------------------------------------------------------------------


def _savings(saved: Saved) -> Markup | None:
    days = saved.days[-_MOST_DAYS:]
    if not days or saved.usd is None:
        return None
    gains = [max(round(one.usd or 0.0, 6), 0.0) for one in days]
    bars = [
        (_day(one.day), gain, gain,
         f"{figure(one.usd, '{:,.4f}')} USD and {duration(one.seconds)} saved on {one.stripped:,} requests;"
         f" audits cost {one.overhead_usd:,.4f} USD")
        for one, gain in zip(days, gains, strict=True)
    ]  # fmt: skip
    title = (
        f"USD, net of audits and shadows: {_day(days[0].day)} to {_day(days[-1].day)}; {_usd(max(gains))} at most"
    )
    chart = el("div", _bars(bars), class_="box") if max(gains) else None
    return join(el("h2", "Saved a day"), el("p", title, class_="soft small"), chart)


def _prompt(template: PromptTemplate) -> list[Markup]:
    parts = [part for pattern in template.head for part in _pattern(pattern)]
    if template.turns:
        inside = ", the user's without the last message's fixed text" if template.wraps else ""
        parts.append(el("div", f"turns of the conversation: they stay{inside}", class_="label"))
    return parts + [part for pattern in template.tail for part in _pattern(pattern)]


def _pattern(pattern: MessagePattern) -> list[Markup]:
    parts = [el("div", heading(pattern), class_="label")]
    for field in pattern.fields:
        slots = [el("mark", "{{" + slot.name + "}}") for slot in field.slots]
        pieces: list[Child] = [field.literals[0]]
        for slot, literal in zip(slots, field.literals[1:], strict=True):
            pieces += [slot, literal]
        parts.append(el("div", *pieces, class_="text prompt", dir="auto"))
    return parts


def _slots(found: Page) -> Markup | None:
    if not found.found.slots:
        return None
    columns = (("slot", False), ("holds", False), ("different", True), ("the newest", False))
    rows = [
        (el("mark", facts.slot.name), facts.slot.kind, f"{facts.different:,} of {found.found.sampled:,}",
         el("div", _short(facts.example or ""), class_="text", dir="auto"))
        for facts in found.found.slots
    ]  # fmt: skip
    return join(el("h2", "Slots"), _table(columns, rows))


def _example(found: Page) -> Markup | None:
    example = found.found.example
    if example is None:
        return None
    sent = [
        el(
            "div",
            el("div", str(turn.get("role", "")), class_="label"),
            el("div", _said(turn), class_="text", dir="auto"),
        )
        for turn in example.stripped
    ]
    about = el("p", f"What goes out of exchange {example.exchange_id} when it is stripped:", class_="soft")
    return join(el("h2", "Example"), about, el("div", *sent, class_="box"))


def _said(turn: dict[str, Any]) -> str:
    content = turn.get("content")
    return _short(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]} …"


def _versions(found: Page) -> Markup:
    columns = (("version", False), ("since, UTC", False), ("state", False), ("of the newest 1,000", True),
               ("fixed words", True))  # fmt: skip
    rows = [
        (one.template.name, _when(one.created_at), one.state, share(one.share), f"{one.template.fixed_words:,}")
        for one in reversed(found.found.versions)
    ]
    return join(el("h2", "Versions"), _table(columns, rows))

"""The page of an evaluation, `report.html`: one file that opens without a network, written beside the dataset.

It holds texts of the traffic, so it lies where `unprompt prune` finds it. All of it is data, and may be hostile: it
is escaped by `markup`, and the page's own policy forbids scripts and every address.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from gateway.config import TaskPolicy
from gateway.domain.dataset import Dataset, Row
from gateway.files import write_whole
from gateway.pipeline import breakdown, comparison
from gateway.pipeline.comparison import cell, lines, ms, share, usd
from gateway.pipeline.gate import Decision, decide
from gateway.pipeline.markup import Markup, el, join
from gateway.pipeline.scores import JudgeBill, Report, Score
from gateway.pipeline.scoring import Line
from gateway.pipeline.tool_calls import shown
from gateway.pipeline.trial import Trial

__all__ = ["FILE", "html_of", "write_report"]

log = logging.getLogger(__name__)

FILE = "report.html"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(dataset: Dataset, report: Report, policy: TaskPolicy, trial: Trial, best: Line | None) -> None:
    """Write the page into the dataset's folder. A disk that does not let us costs the page, not the evaluation."""
    folder = Path(dataset.directory)
    if not folder.is_dir():
        return
    text = html_of(report, decide(report, policy), policy, dataset.card, trial, best)
    try:
        write_whole(folder / FILE, text.encode("utf-8", "replace"))
    except OSError as error:
        log.warning("%s: %s", folder / FILE, error.strerror)


def html_of(
    report: Report, decision: Decision, policy: TaskPolicy, card: dict[str, Any], trial: Trial, best: Line | None
) -> str:
    """The whole page."""
    style = resources.files("gateway.pipeline").joinpath("report.css").read_text("utf-8")
    head = el(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        el("title", f"{report.task}: evaluation"),
        el("style", Markup(style)),
    )
    body = el(
        "body",
        _header(report, decision),
        _tiles(report, decision),
        comparison.figure(report, policy),
        comparison.table(report),
        _decision(decision),
        *breakdown.sections(report, trial, best),
        _disagreements(trial, best),
        _card(card),
        _method(report),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


# --- the head of the page ----------------------------------------------------------------------------------


def _header(report: Report, decision: Decision) -> Markup:
    when = datetime.fromtimestamp(int(report.id.rsplit("-", 1)[-1]) / 1000, UTC)
    about = (
        f"{report.kind}, template {report.template}, dataset {report.dataset}, judged on {report.incumbent.rows} "
        f"held-out requests, {when:%d %B %Y, %H:%M} UTC"
    )
    verdict = "May take traffic" if decision.promote else "Refused by the gate"
    confirmed = decision.notes[1] if len(decision.notes) > 1 else None
    return el(
        "header",
        el(
            "div",
            el("h1", report.task),
            el("div", about, class_="soft small"),
            el("div", confirmed, class_="soft small") if confirmed else None,
        ),
        el("div", verdict, class_="pill" if decision.promote else "pill no"),
    )


def _tiles(report: Report, decision: Decision) -> Markup | None:
    best, base = decision.score, report.incumbent
    if best is None:
        return None
    quality = best.agreement if best.quality is None else best.quality
    low = best.agreement_low if best.quality is None else best.quality_low
    cost = best.cost_per_1k_usd
    gold = best.gold and f"; {share(best.gold.accuracy.value)} right by people's word"
    return el(
        "div",
        _tile("Quality", share(quality), f"at least {share(low)}, {report.confidence:.1%} sure{gold or ''}"),
        _tile("Cost of 1,000 requests", usd(cost), _beside(cost, base.cost_per_1k_usd, usd)),
        _tile("Latency, p95", ms(best.p95_ms), _beside(best.p95_ms, base.p95_ms, ms)),
        _tile("Answers itself", share(best.answered), "the rest goes on, whole, to the incumbent"),
        class_="tiles",
    )


def _tile(what: str, value: str, beside: str) -> Markup:
    return el(
        "div",
        el("div", what, class_="what"),
        el("div", value, class_="value"),
        el("div", beside, class_="beside"),
        class_="tile",
    )


def _beside(value: float | None, base: float | None, form: Any) -> str:
    if value is None or not base:
        return f"incumbent {form(base)}"
    return f"incumbent {form(base)}, {value / base - 1:+.0%}".replace("-", "\N{MINUS SIGN}")


# --- the decision -----------------------------------------------------------------------------------------


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _decision(decision: Decision) -> Markup:
    head = el(
        "tr",
        el("th", "condition"),
        el("th", "measured", class_="right"),
        el("th", "limit", class_="right"),
        el("th", "", class_="right"),
    )
    rows = [
        el(
            "tr",
            el("td", check.name),
            cell(_figure(check.value)),
            cell(_figure(check.limit)),
            el("td", "holds" if check.holds else "fails", class_="right yes" if check.holds else "right no-mark"),
        )
        for check in decision.checks
    ]
    policy = ", ".join(f"{key} {value}" for key, value in decision.policy.items() if value is not None)
    return join(
        el("h2", "Decision"),
        el(
            "div",
            el("p", el("strong", decision.reason)),
            el("table", head, *rows),
            el("p", f"Rule: {decision.rule}.", class_="small"),
            el("ul", *(el("li", note) for note in decision.notes), class_="small"),
            el("p", f"Policy: {policy}", class_="soft small"),
            class_="box",
        ),
    )


# --- texts ------------------------------------------------------------------------------------------------


MOST_SHOWN = 20


def _disagreements(trial: Trial, best: Line | None) -> Markup | None:
    if best is None:
        return None
    worst = [
        (value, -row.seen, row.exchange_id, row, text)
        for row, value, text, own in zip(trial.rows, best.values, best.given, best.own, strict=True)
        if own and value < 1
    ]
    worst.sort(key=lambda found: found[:3])
    shown = [_side_by_side(row, text, value, trial) for value, _, _, row, text in worst[:MOST_SHOWN]]
    title = el("h2", "Worst disagreements")
    if not shown:
        return join(title, el("p", "None: every answer that it gave is the incumbent's.", class_="soft"))
    told = f"{len(worst)} of {sum(best.own)} answers differ" + (
        f"; the worst {MOST_SHOWN} of them" if len(worst) > MOST_SHOWN else ""
    )
    about = el("p", f"{told}. Which of the two is right, the traffic does not say.", class_="soft")
    return join(title, about, *shown)


def _side_by_side(row: Row, text: str | None, value: float, trial: Trial) -> Markup:
    often = f", asked {row.seen} times" if row.seen > 1 else ""
    whose = "A person's answer" if row.exchange_id in trial.gold else "Incumbent"
    expected = shown(row.output) or "(no text: a refusal)"
    like = f", likeness {value:.0%}" if 0 < value < 1 else ""
    return el(
        "div",
        el("div", el("div", f"Request {row.exchange_id}{often}", class_="label"), _text(row.text), class_="asked"),
        el(
            "div",
            el("div", el("div", whose, class_="label"), _text(expected)),
            el(
                "div",
                el("div", f"Candidate{like}", class_="label"),
                _text(shown(text) if text is not None else "(an answer)"),
            ),
            class_="sides",
        ),
        class_="pair",
    )


def _text(text: str) -> Markup:
    return el("div", text if len(text) <= 4000 else f"{text[:4000]} …", class_="text", dir="auto")


# --- where the rows came from -------------------------------------------------------------------------------


def _card(card: dict[str, Any]) -> Markup:
    recorded = card.get("recorded", 0)
    funnel = [("recorded exchanges", recorded, False)]
    funnel += [(f"dropped: {reason}", count, True) for reason, count in card.get("dropped", {}).items()]
    funnel += [("rows", card.get("rows", 0), False), ("  of them to train on", card.get("train", 0), False)]
    balance = sorted(card.get("balance", {}).items(), key=lambda item: -item[1])
    plain = {k: v for k, v in card.items() if isinstance(v, int | float | str) and k not in _SHOWN}
    facts = [el("tr", el("td", key.replace("_", " ")), cell(_fact(value))) for key, value in plain.items()]
    labels = None
    if balance:
        bars = _bars([(label, count, False) for label, count in balance[:20]])
        labels = join(el("h3", f"Answers, {len(balance)} labels"), bars)
    return join(
        el("h2", "Dataset card"),
        el(
            "div",
            el("div", el("h3", "Funnel"), _bars(funnel), labels, class_="box"),
            el("div", el("h3", "Figures"), el("table", *facts), class_="box"),
            class_="columns",
        ),
    )


_SHOWN = ("task", "template", "recorded", "rows", "train")


def _bars(entries: Sequence[tuple[str, int, bool]]) -> Markup:
    most = max((count for _, count, _ in entries), default=0) or 1
    rows = [
        el(
            "tr",
            el("td", " ".join(name.split())[:80] or "(empty)"),
            el(
                "td",
                el("span", class_="bar lost" if lost else "bar", style=f"width:{100 * count / most:.1f}%"),
                style="width:40%;vertical-align:middle",
            ),
            cell(f"{count:,}"),
        )
        for name, count, lost in entries
    ]
    return el("table", *rows)


def _fact(value: float | str) -> str:
    if isinstance(value, str):
        return value if len(value) <= 40 else f"{value[:37]}..."
    return f"{value:,}"


def method(report: Report) -> list[str]:
    """How it was measured: whose latency how, hosting and from which volume on it pays, what the judge said and
    took, and whose intervals they are; a sentence each."""
    items = [f"Latency of {who}: {source}." for source, who in _sources(report).items()]
    if report.requests_per_day:
        rate = f"{report.requests_per_day:,.0f} requests a day, the mean over the time of recording"
        items.append(f"Traffic: {rate}; hosting is shared among them.")
    items += [_pays(score) for score in lines(report) if score.hosting_per_1k_usd]
    if report.judge is not None:
        items.append(_judged(report.judge))
    items.append("Intervals: rows resampled 1,000 times, seed fixed; shares that agree by the exact binomial.")
    return items


def _method(report: Report) -> Markup:
    items = method(report)
    return join(el("h2", "How it was measured"), el("ul", *(el("li", item) for item in items), class_="small"))


def _sources(report: Report) -> dict[str, str]:
    """How latency was measured -> of whom: each way is told once."""
    found: dict[str, list[int]] = {}
    for number, score in enumerate(lines(report)):
        if score.latency_source:
            found.setdefault(score.latency_source, []).append(number)
    scores = lines(report)
    others = {source: numbers for source, numbers in found.items() if numbers != [0]}
    return {source: "the incumbent" for source, numbers in found.items() if numbers == [0]} | {
        source: "all others" if len(others) == 1 else ", ".join(scores[number].candidate for number in numbers)
        for source, numbers in others.items()
    }


def _pays(score: Score) -> str:
    if score.break_even_per_day is None:
        return f"{score.candidate}: its requests cost as much as the incumbent's, so its hosting never pays."
    return f"{score.candidate}: its hosting pays from {score.break_even_per_day:,.0f} requests a day on."


def _judged(bill: JudgeBill) -> str:
    cost = "unpriced" if bill.cost_usd is None else usd(bill.cost_usd)
    verdicts = f"{bill.better} better, {bill.equal} alike, {bill.worse} worse, {bill.unanswered} without a verdict"
    orders = f"both orders agreed on {share(bill.consistent)}"
    return f"Judge {bill.model}: {bill.pairs} pairs, {verdicts}; {orders}; {cost} in all."

"""All models beside each other: the chart of quality, cost and latency, and the table with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.config import TaskPolicy
from gateway.pipeline import chart
from gateway.pipeline.gate import promise
from gateway.pipeline.intervals import Figure
from gateway.pipeline.markup import Markup, el, join
from gateway.pipeline.scores import Report, Score

_MEASURES = {
    "exact": "agreement with the incumbent",
    "fields": "F1 of JSON fields",
    "similarity": "likeness to the incumbent (chrF)",
    "judge": "likeness to the incumbent (chrF)",
}
METRICS = {
    "macro_f1": "macro-F1",
    "field_f1": "field F1",
    "json_valid": "valid JSON",
    "schema_valid": "fits schema",
    "calls_same": "same tool calls",
    "calls_f1": "arguments F1",
    "chrf": "chrF",
    "embedding": "embedding",
}
"""What the measures of `Score.metrics` are called."""


def lines(report: Report) -> list[Score]:
    """Every line of the table in its order: the incumbent has number 0."""
    return [report.incumbent, *report.candidates, *report.baselines]


def _height(score: Score, report: Report) -> tuple[float, float | None]:
    """Quality and its lower bound as drawn; the judge saw one candidate only, so likeness stands for the others."""
    if report.measure == "judge":
        found = score.metrics.get("chrf")
        return (1.0, None) if found is None else (found.value, found.low)
    if score.quality is None:
        return score.agreement, None if score.role == "incumbent" else score.agreement_low
    return score.quality, score.quality_low


def figure(report: Report, policy: TaskPolicy) -> Markup:
    """The chart with its legend."""
    scores = lines(report)
    priced = any(score.cost_per_1k_usd is not None for score in scores)
    dots = [dot for n, score in enumerate(scores) if (dot := _dot(n, score, report, priced)) is not None]
    x_name = "USD per 1,000 requests" if priced else "latency p95, ms (no prices are known)"
    asked = promise(report, policy) if report.measure != "judge" else None
    y_name = _MEASURES[report.measure]
    missing = [str(n) for n in range(len(scores)) if n not in {dot.number for dot in dots}]
    legend = [
        "\N{BLACK DIAMOND} incumbent",
        "\N{BLACK CIRCLE} the candidate that is judged",
        "\N{WHITE CIRCLE} others",
        "\N{WHITE SQUARE} baselines",
        "area: latency p95",
        "coloured: on the Pareto front of all three",
    ]
    if missing:
        legend.append(f"not drawn, since a figure is not known: {', '.join(missing)}")
    return join(
        el("h2", "Quality, cost, latency"),
        el(
            "div",
            chart.draw(dots, promise=asked, x_name=x_name, y_name=y_name),
            el("div", *(el("span", text) for text in legend), class_="legend"),
            class_="box",
        ),
    )


def _dot(number: int, score: Score, report: Report, priced: bool) -> chart.Dot | None:
    across = score.cost_per_1k_usd if priced else score.p95_ms
    if across is None:
        return None
    quality, low = _height(score, report)
    kind = score.role if score.role in ("candidate", "incumbent") else "baseline"
    return chart.Dot(
        number=number,
        name=score.candidate,
        kind=kind,
        cost=across,
        quality=quality,
        low=low,
        p95_ms=score.p95_ms,
        chosen=_is_first(score, report),
    )


def _is_first(score: Score, report: Report) -> bool:
    return bool(report.candidates) and score is report.candidates[0]


def table(report: Report) -> Markup:
    """All lines with their figures, and who failed."""
    scores = lines(report)
    dots = [dot for n, s in enumerate(scores) if (dot := _dot(n, s, report, s.cost_per_1k_usd is not None))]
    best = chart.front(dots)
    names = [key for key in METRICS if any(key in score.metrics for score in scores)]
    has_gold = any(score.gold for score in scores)
    heads = [
        "",
        "model",
        "agrees",
        *(["right"] if has_gold else []),
        *(METRICS[key] for key in names),
        "answers",
        "USD/1k",
        "p50 ms",
        "p95 ms",
        "tokens in",
    ]
    rows = [_row(n, score, report, names, has_gold, n in best) for n, score in enumerate(scores)]
    head = el("tr", *(el("th", text, class_=None if n < 2 else "right") for n, text in enumerate(heads)))
    notes = [f"{key}: {reason}" for key, reason in report.failed.items()]
    failed = join(el("h3", "Failed"), el("ul", *(el("li", note) for note in notes))) if notes else None
    under = (
        "Under each figure its two-sided 95 % interval, under agreement its one-sided lower bound. "
        "Agreement is with the incumbent's answers; “right” is by people's corrections and approvals; “answers” is "
        "the share that it answers itself, the rest goes to the incumbent."
    )
    return join(
        el("h2", "All models on the same requests"),
        el("div", el("table", head, *rows), el("p", under, class_="soft small"), failed, class_="box"),
    )


def _row(place: int, score: Score, report: Report, names: Sequence[str], has_gold: bool, best: bool) -> Markup:
    is_base = score.role == "incumbent"
    rows = None if score.rows == report.incumbent.rows else f"{score.rows} rows"
    target = f"{score.upstream}/{score.model}" + (f", {rows}" if rows else "")
    front = el("span", " on the front", class_="front-mark") if best else None
    gold = score.gold
    figures = [
        cell(share(score.agreement), None if is_base else f"≥ {share(score.agreement_low)}"),
        *([cell(share(gold.accuracy.value), f"{gold.rows} rows") if gold else cell("-")] if has_gold else []),
        *(_metric(score.metrics.get(key)) for key in names),
        cell(share(score.answered), _threshold(score)),
        cell(usd(score.cost_per_1k_usd), _hosting(score)),
        cell(number(score.p50_ms)),
        cell(number(score.p95_ms)),
        cell(number(score.input_tokens, 0)),
    ]
    return el(
        "tr",
        el("td", el("span", str(place), class_="badge")),
        el("td", el("div", score.candidate, front), el("div", target, class_="sub")),
        *figures,
        class_="chosen" if _is_first(score, report) else None,
    )


def _metric(figure: Figure | None) -> Markup:
    if figure is None:
        return cell("-")
    return cell(share(figure.value), f"{100 * figure.low:.1f} to {100 * figure.high:.1f}")


def cell(text: str, under: str | None = None) -> Markup:
    """A figure to the right, and below it what belongs to it."""
    return el("td", text, el("div", under, class_="sub") if under else None, class_="right")


def _threshold(score: Score) -> str | None:
    return f"above {score.min_confidence:.4g}" if score.min_confidence > 0 else None


def _hosting(score: Score) -> str | None:
    return f"{usd(score.hosting_per_1k_usd)} hosting" if score.hosting_per_1k_usd else None


# --- figures ----------------------------------------------------------------------------------------------


def share(value: float | None) -> str:
    """A share in percent; - where it is not known."""
    return "-" if value is None else f"{value:.1%}"


def usd(value: float | None) -> str:
    """US dollars, small amounts to a hundredth of a cent."""
    if value is None:
        return "-"
    return f"${value:,.2f}" if value >= 10 else f"${value:.4f}"


def ms(value: float | None) -> str:
    """Milliseconds."""
    return "-" if value is None else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def number(value: float | None, digits: int = 1) -> str:
    """A plain number with so many digits."""
    return "-" if value is None else f"{value:,.{digits}f}"

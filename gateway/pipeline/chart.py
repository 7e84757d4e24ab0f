"""The chart of quality over cost, with latency as size, as SVG: who is on the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from gateway.pipeline.markup import Markup, el, join

WIDTH, HEIGHT = 1000, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 34, 52
_LOG_FROM = 8.0
"""Costs that are so many times apart are drawn on a logarithmic axis."""
_MOST_APART = 1e5
"""What is cheaper still is drawn at the left end."""
_LEAST = 1e-6
_LINE = 13


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table as a point: `cost` in the axis's unit, quality and lower bound from 0 to 1."""

    number: int
    name: str
    kind: str
    cost: float
    quality: float
    low: float | None = None
    p95_ms: float | None = None
    chosen: bool = False


def front(dots: Sequence[Dot]) -> set[int]:
    """The numbers of those that no other one beats or equals in all of quality, cost and latency (Pareto)."""
    return {dot.number for dot in dots if not any(_beats(other, dot) for other in dots)}


def _beats(one: Dot, other: Dot) -> bool:
    pairs = [(one.cost, other.cost), (-one.quality, -other.quality), (_time(one), _time(other))]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _time(dot: Dot) -> float:
    return math.inf if dot.p95_ms is None else dot.p95_ms


def draw(dots: Sequence[Dot], *, promise: float | None, x_name: str, y_name: str) -> Markup:
    """The whole figure; no dots, no figure."""
    if not dots:
        return Markup("")
    x, y = _Axis.of([dot.cost for dot in dots]), _heights(dots, promise)
    best = front(dots)
    curve = sorted((dot for dot in dots if dot.number in best), key=lambda dot: (dot.cost, dot.quality))
    places = [(_across(x, dot.cost), _up(y, max(dot.quality, y[0]))) for dot in curve]
    label = f"{y_name} over {x_name} of {len(dots)} models"
    return el(
        "svg",
        _grid(x, y, x_name, y_name),
        _promise(y, promise),
        el("path", d=_steps(places), class_="front") if len(places) > 1 else None,
        *(_dot(dot, _place(dot, x, y, dots), y, dot.number in best) for dot in _behind_first(dots)),
        *_numbers([(dot, *_place(dot, x, y, dots)) for dot in dots], y),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label,
    )  # fmt: skip


def _behind_first(dots: Sequence[Dot]) -> list[Dot]:
    """Large ones behind small ones, the chosen one before all."""
    return sorted(dots, key=lambda dot: (dot.chosen, -(dot.p95_ms or 0)))


# --- axes ------------------------------------------------------------------------------------------------


class _Axis(msgspec.Struct, frozen=True):
    low: float
    high: float
    log: bool
    ticks: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        high = max(*values, _LEAST)
        low = max(min(values), high / _MOST_APART) if min(values) > 0 else 0.0
        if low > 0 and high / low >= _LOG_FROM:
            low, high = low / 1.5, high * 1.5
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
            return cls(low, high, True, ticks)
        high *= 1.12
        return cls(0.0, high, False, _round_steps(0.0, high, 6))


def _round_steps(low: float, high: float, most: int) -> list[float]:
    """Ticks at round numbers, about so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _heights(dots: Sequence[Dot], promise: float | None) -> tuple[float, float]:
    """The range of qualities that is worth a look: baselines far below it are drawn at its foot."""
    worth = [dot.quality if dot.low is None else dot.low for dot in dots if dot.kind in ("candidate", "incumbent")]
    least = min([*(worth or [dot.quality for dot in dots]), *([] if promise is None else [promise])])
    top = max(dot.quality for dot in dots)
    room = max(top - least, 0.02) * 0.18
    return max(0.0, least - room), min(1.0, top) + room * 0.6


def _across(x: _Axis, value: float) -> float:
    low, high, at = (math.log(v) if x.log else v for v in (x.low, x.high, max(value, x.low)))
    return _LEFT + (at - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)


def _up(y: tuple[float, float], value: float) -> float:
    return HEIGHT - _BOTTOM - (value - y[0]) / (y[1] - y[0]) * (HEIGHT - _TOP - _BOTTOM)


def _grid(x: _Axis, y: tuple[float, float], x_name: str, y_name: str) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    rows = [tick for tick in _round_steps(y[0], y[1], 6) if tick <= 1]
    lines = [el("line", x1=_LEFT, x2=right, y1=_up(y, tick), y2=_up(y, tick), class_="grid") for tick in rows]
    digits = 0 if all(abs(tick * 100 - round(tick * 100)) < 1e-6 for tick in rows) else 1
    left = [el("text", f"{tick:.{digits}%}", x=_LEFT - 10, y=_up(y, tick) + 4, class_="tick end") for tick in rows]
    below = [el("text", f"{tick:.3g}", x=_across(x, tick), y=bottom + 20, class_="tick middle") for tick in x.ticks]
    places = [_across(x, tick) for tick in x.ticks]
    marks = [el("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="axis") for at in places]
    axis = el("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
    names = [el("text", x_name, x=right, y=HEIGHT - 8, class_="name end"),
             el("text", y_name, x=_LEFT, y=14, class_="name")]  # fmt: skip
    return join(*lines, *left, axis, *marks, *below, *names)


def _promise(y: tuple[float, float], promise: float | None) -> Markup | None:
    if promise is None or not y[0] <= promise <= y[1]:
        return None
    height = _up(y, promise)
    line = el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=height, y2=height, class_="promise")
    return join(line, el("text", f"promise {promise:.1%}", x=WIDTH - _RIGHT, y=height + 15, class_="tick end"))


def _steps(places: Sequence[tuple[float, float]]) -> str:
    """What the front dominates is below and right of it: it goes in steps."""
    path, height = f"M{places[0][0]:.1f} {places[0][1]:.1f}", places[0][1]
    for x, y in places[1:]:
        height = min(height, y)
        path += f" H{x:.1f} V{height:.1f}"
    return path


# --- dots ------------------------------------------------------------------------------------------------


def _radius(dot: Dot, dots: Sequence[Dot]) -> float:
    """The area grows with p95 latency."""
    longest = max((other.p95_ms or 0.0 for other in dots), default=0.0)
    return 5 + 9 * math.sqrt((dot.p95_ms or 0.0) / longest) if longest else 8.0


def _place(dot: Dot, x: _Axis, y: tuple[float, float], dots: Sequence[Dot]) -> tuple[float, float, float]:
    """Where its middle is, and its radius; what lies below the chart stands on its foot."""
    radius, below = _radius(dot, dots), dot.quality < y[0]
    return _across(x, dot.cost), _up(y, max(dot.quality, y[0])) - (radius if below else 0), radius


def _dot(dot: Dot, place: tuple[float, float, float], y: tuple[float, float], best: bool) -> Markup:
    across, height, radius = place
    classes = " ".join(["dot", dot.kind, *(["best"] if best else []), *(["chosen"] if dot.chosen else [])])
    whisker: Markup | None = None
    if dot.low is not None and dot.quality >= y[0]:
        foot = _up(y, max(dot.low, y[0]))
        whisker = el("line", x1=across, x2=across, y1=height, y2=foot, class_="whisker")
    return el("g", el("title", _told(dot)), whisker, _shape(dot, across, height, radius), class_=classes)


def _numbers(places: Sequence[tuple[Dot, float, float, float]], y: tuple[float, float]) -> list[Markup]:
    """The number of each above it, and what it has where it is below the chart; what would overlap is stacked, and
    goes on below the dots where there is no room above them."""
    taken: list[tuple[float, float, float]] = []
    found = []
    for dot, x, height, radius in sorted(places, key=lambda place: (place[1], place[0].number)):
        text = str(dot.number) if dot.quality >= y[0] else f"{dot.number}: {dot.quality:.0%} ↓"
        at, wide = height - radius - 6, 4.0 * len(text) + 4
        step = -_LINE
        while any(abs(x - other) < wide + width and abs(at - line) < _LINE for other, line, width in taken):
            at += step
            if at < _LINE:
                at, step = height + radius + _LINE + 2, _LINE
        taken.append((x, at, wide))
        found.append(el("text", text, x=x, y=at, class_="number"))
    return found


def _shape(dot: Dot, x: float, y: float, r: float) -> Markup:
    if dot.kind == "incumbent":
        corners = f"M{x:.1f} {y - r:.1f} L{x + r:.1f} {y:.1f} L{x:.1f} {y + r:.1f} L{x - r:.1f} {y:.1f} Z"
        return el("path", d=corners, class_="mark")
    if dot.kind == "baseline":
        side = r * 0.86
        return el("rect", x=x - side, y=y - side, width=2 * side, height=2 * side, rx=3.0, class_="mark")
    return el("circle", cx=x, cy=y, r=r, class_="mark")


def _told(dot: Dot) -> str:
    late = "" if dot.p95_ms is None else f", p95 {dot.p95_ms:,.0f} ms"
    return f"{dot.name}: {dot.quality:.1%}, {dot.cost:.4g}{late}"

"""The page of an evaluation: all of its texts come from traffic, and any of them may be hostile."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import REMOTE, evaluated, only, says
from stories import asked, exchange, feedback, keep, mail, sorted_by_the_model, traffic

from gateway.domain.dataset import Dataset
from gateway.pipeline.chart import HEIGHT, WIDTH, Dot, draw, front
from gateway.pipeline.dataset import build
from gateway.pipeline.markup import Markup, el, join
from gateway.stores.sqlite import SqliteStore

EVIL = "</div></style><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'it' <!--"


class Page(HTMLParser):
    """What a browser would make of the page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(400))
    return build(store, "mail", tmp_path / "data" / "datasets")


def page_of(data: Dataset) -> str:
    return (Path(data.directory) / "report.html").read_text("utf-8")


def test_the_page_says_what_was_found(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    """Praise is answered `other`: it is in the confusion, in the disagreements and in the refusal."""
    given = {"refund": "refund", "praise": "other", "other": "other", "delivery": "delivery"}
    report = evaluated(store, tmp_path, data, says(lambda text: given[sorted_by_the_model(text)], cost=0.0001))
    page = Page(page_of(data))
    assert page.open == []
    score = only(report)
    for expected in ("mail", "Refused by the gate", f"{score.agreement:.1%}", "openai/small-1", "$0.1000",
                     "$1.0000", "agreement, lower bound", "Not confirmed on newer rows", "Worst disagreements",
                     "recorded exchanges", "openai small"):  # fmt: skip
        assert expected in page.text, expected
    wrong = [row for row in data.part("validation") if row.output == "praise"]
    assert f"{len(wrong)} of {score.rows} answers differ" in page.text
    assert sum(row.text in page.texts for row in wrong) == min(20, len(wrong))
    assert "miss" in [attributes.get("class") for tag, attributes in page.tags if tag == "td"]


def test_it_is_one_file_without_scripts_that_asks_nobody(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    evaluated(store, tmp_path, data, says(sorted_by_the_model))
    page = Page(page_of(data))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "a", "object", "form"}
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in page_of(data)
    assert "@import" not in page_of(data)


def test_texts_of_the_traffic_are_data_wherever_they_stand(store: SqliteStore, tmp_path: Path) -> None:
    """Message, label and the candidate's answer try to end the page and to run a script."""
    rows = [(f"{text} {EVIL}", EVIL if label == "praise" else label) for text, label in mail()[:200]]
    keep(store, [exchange(n, asked(text), label) for n, (text, label) in enumerate(rows)])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    evil = REMOTE.but(options={"base_model": EVIL}, id=f"ft-{EVIL}")
    report = evaluated(store, tmp_path, data, says(lambda text: f"{EVIL} no"), evil)
    page = Page(page_of(data))
    assert page.open == []
    assert only(report).agreement == 0.0
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert any(EVIL in text for text in page.texts)
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}


def test_half_a_surrogate_pair_of_a_candidate_breaks_nothing(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    evaluated(store, tmp_path, data, says(lambda text: "bad \ud83d text\x00"))
    assert "bad ? text" in page_of(data)


def test_the_fields_of_json_answers_are_broken_down(store: SqliteStore, tmp_path: Path) -> None:
    said = [exchange(n, asked(text), json.dumps({"label": label, "clerk": f"number {n}"}))
            for n, (text, label) in enumerate(mail()[:200])]  # fmt: skip
    keep(store, said)
    data = build(store, "mail", tmp_path / "data" / "datasets")
    evaluated(store, tmp_path, data, says(lambda text: json.dumps({"label": sorted_by_the_model(text)})))
    page = Page(page_of(data))
    rows = len(data.part("validation"))
    cells = [text for text in page.texts if text.strip()]
    at = cells.index("clerk")
    assert cells[at : at + 5] == ["clerk", "0", str(rows), "0", "0.0%"]


def test_a_persons_answer_is_called_so(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(200))
    for row in build(store, "mail", tmp_path / "first").part("validation")[:5]:
        feedback(store, row.exchange_id, corrected_output="gift")
    data = build(store, "mail", tmp_path / "data" / "datasets")
    evaluated(store, tmp_path, data, says(sorted_by_the_model))
    assert page_of(data).count("A person&#x27;s answer") == 5
    assert "right by people&#x27;s word" in page_of(data)


def test_a_folder_that_is_gone_costs_the_page_only(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    gone = msgspec.structs.replace(data, directory=str(tmp_path / "nowhere"))
    assert only(evaluated(store, tmp_path, gone, says(sorted_by_the_model))).agreement == 1.0
    blocked = Path(data.directory) / "report.html.partial"
    blocked.mkdir()
    assert only(evaluated(store, tmp_path, data, says(sorted_by_the_model))).agreement == 1.0
    assert not (Path(data.directory) / "report.html").exists()


def test_nothing_that_was_said_is_kept_in_the_store(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    """The page lies with the dataset's files, where pruning finds it; the table of evaluations holds figures."""
    evaluated(store, tmp_path, data, says(lambda text: "an odd answer"))
    assert "an odd answer" in page_of(data)
    kept = store.rows("evaluations")[0]["report"]
    assert "an odd answer" not in kept
    assert not any(row.text in kept for row in data.rows)


# --- markup and chart --------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_any_text_comes_back_as_it_was(child: str, attribute: str) -> None:
    shown = "".join(char for char in child + attribute if char not in "\r\x00")
    page = Page(el("p", shown, title=shown, class_="x"))
    assert "".join(page.texts) == shown
    assert page.tags == [("p", {"title": shown, "class": "x"})]


def test_markup_stays_markup_and_nothing_is_nothing() -> None:
    assert join("<", None, Markup("<b>"), el("i", "&")) == "&lt;<b><i>&amp;</i>"
    assert el("line", x1=1.0, x2=2.345, y1=3) == '<line x1="1" x2="2.35" y1="3"></line>'


shares, amounts = st.floats(0, 1), st.floats(0, 1000)
dots = st.lists(
    st.tuples(amounts, shares, st.none() | amounts, st.none() | shares, st.sampled_from(["candidate", "baseline"])),
    min_size=1, max_size=8,
).map(lambda found: [
    Dot(number=n, name=f"model {n}", kind="incumbent" if n == 0 else kind, cost=cost, quality=quality, p95_ms=late,
        low=None if low is None else min(low, quality), chosen=n == 1)
    for n, (cost, quality, late, low, kind) in enumerate(found)
])  # fmt: skip


def no_worse(one: Dot, other: Dot) -> bool:
    late = float("inf")
    times = (late if one.p95_ms is None else one.p95_ms, late if other.p95_ms is None else other.p95_ms)
    return one.cost <= other.cost and one.quality >= other.quality and times[0] <= times[1]


@given(dots)
def test_nobody_on_the_front_is_beaten_and_everybody_else_is_by_one_on_it(found: list[Dot]) -> None:
    best = [dot for dot in found if dot.number in front(found)]
    assert best
    for dot in found:
        better = [other for other in best if no_worse(other, dot) and not no_worse(dot, other)]
        assert bool(better) == (dot not in best)


@settings(deadline=None)
@given(dots, st.none() | shares)
def test_every_dot_is_inside_the_picture(found: list[Dot], promise: float | None) -> None:
    page = Page(draw(found, promise=promise, x_name="cost", y_name="quality"))
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("cx", "x", "x1", "x2"):
            if name in attributes and tag in ("circle", "line"):
                assert 0 <= float(attributes[name] or "") <= WIDTH
        for name in ("cy", "y1", "y2"):
            if name in attributes:
                assert 0 <= float(attributes[name] or "") <= HEIGHT
    assert sum(tag == "g" for tag, _ in page.tags) == len(found)


def test_no_models_no_picture() -> None:
    assert draw([], promise=0.95, x_name="", y_name="") == ""


def test_how_latency_was_measured_is_told_once_for_all_that_were_asked_alike(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    evaluated(store, tmp_path, data, says(sorted_by_the_model), *(REMOTE.but(id=f"ft-{n}") for n in range(3)))
    told = [text for text in Page(page_of(data)).texts if text.startswith("Latency of")]
    assert [text.partition(":")[0] for text in told] == ["Latency of the incumbent", "Latency of all others"]
    assert "asked directly" in told[1]


def test_the_numbers_of_ten_models_at_one_place_stay_in_the_chart() -> None:
    dots = [Dot(number=n, name=f"m{n}", kind="candidate", cost=1.0, quality=1.0, p95_ms=10.0) for n in range(10)]
    drawn = str(draw(dots, promise=0.95, x_name="USD", y_name="agreement"))
    heights = [float(y) for y in re.findall(r'y="([-\d.]+)" class="number"', drawn)]
    assert len(heights) == len(set(heights)) == 10
    assert all(10 <= y <= HEIGHT for y in heights)

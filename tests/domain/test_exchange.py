"""Ids that keep their order, the two halves of an exchange, and names that are safe anywhere."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.routes import _TargetConfig
from gateway.domain.exchange import Begin, End, Exchange, Usage, id_maker, task_name

BEGIN = Begin(
    id="e1", started_at=1000.0, method="POST", endpoint="/v1/chat/completions", provider="openai", route=None,
    task=None, task_hint="support", model_requested="gpt-6", key_id="k", tags={"team": "a"},
    request_headers={}, request=b'{"model":"gpt-6"}',
)  # fmt: skip
END = End(
    id="e1", target="openai/gpt-6", stripped=False, status=200, streamed=False, complete=True, error_type=None,
    latency_ms=12.5, ttft_ms=None, model_served="gpt-6-2026", finish_reason="stop",
    usage=Usage(input=10, output=2, source="upstream"), cost_usd=0.001, attempts=[], response_headers={},
    response=b"{}", response_truncated=True,
)  # fmt: skip


def test_ids_keep_their_order_when_the_clock_stands_still_or_jumps_back() -> None:
    times = iter([5.0] * 5000 + [4.0] * 5000 + [6.0] * 5000)
    new_id = id_maker(lambda: next(times))
    ids = [new_id() for _ in range(15_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", i) for i in ids)


def test_a_begin_without_an_end_is_an_incomplete_row() -> None:
    row = Exchange.of(BEGIN, None)
    assert (row.complete, row.status, row.request) == (False, None, b'{"model":"gpt-6"}')


def test_both_halves_make_a_row_that_is_truncated_when_one_half_is() -> None:
    row = Exchange.of(BEGIN, END)
    assert (row.complete, row.model_served, row.input_tokens, row.truncated) == (True, "gpt-6-2026", 10, True)
    assert (row.task_hint, row.tags, row.usage_source) == ("support", {"team": "a"}, "upstream")


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        ("support-intent", "support-intent"),
        ("team/support@v2 (new)", "team-support-v2-new"),
        ("../../etc/passwd", "etc-passwd"),
        ("  spaced  ", "spaced"),
        ("a" * 128, "a" * 64),
        ("v1.2_x", "v1.2_x"),
        (None, None),
        ("", None),
        (" ", None),
    ],
)
def test_the_name_of_a_task_is_what_is_readable_of_the_header(hint: str | None, name: str | None) -> None:
    assert task_name(hint) == name


def test_names_without_a_latin_letter_stay_apart() -> None:
    names = [task_name(hint) for hint in ("поддержка", "サポート", "..", "@", "客服")]
    assert len(set(names)) == len(names)
    assert all(name is not None and re.fullmatch(r"task-[0-9a-f]{8}", name) for name in names)


@given(st.text(max_size=200).filter(lambda hint: hint.strip() != ""))
def test_every_name_is_a_file_name_a_strip_and_its_own_name(hint: str) -> None:
    name = task_name(hint)
    assert name is not None
    assert task_name(name) == name
    assert PurePosixPath(name).name == name
    assert name not in {".", ".."}
    assert len(name) <= 64
    assert _TargetConfig(upstream="local", strip=f"{name}@12").strip == f"{name}@12"

"""Which target a request gets, and which routes fit it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.route import Match, Route, RouteTable, Target

CANARY = Route(
    name="support",
    match=Match(provider="openai", model="gpt-6", task="support"),
    targets=(
        Target(upstream="local", model="support-7", weight=5.0, strip="support@3"),
        Target(upstream="openai", model="gpt-6", weight=95.0),
    ),
)


def test_five_of_a_hundred_go_to_the_canary() -> None:
    chosen = [CANARY.choose(number / 1000).label for number in range(1000)]
    assert chosen.count("local/support-7") == 50
    assert chosen.count("openai/gpt-6") == 950


@given(
    st.lists(st.floats(min_value=0, max_value=1e6, allow_subnormal=False), min_size=1, max_size=6).filter(any),
    st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_a_target_of_weight_0_is_never_chosen(weights: list[float], point: float) -> None:
    targets = tuple(Target(upstream=str(n), weight=weight) for n, weight in enumerate(weights))
    assert Route(name="r", match=Match(), targets=targets).choose(point).weight > 0


def test_what_a_match_leaves_out_it_does_not_ask_for() -> None:
    table = RouteTable(
        routes=(
            CANARY,
            Route(name="vip", match=Match(key="k1"), targets=(Target(upstream="openai"),)),
            Route(name="team", match=Match(tags={"team": "a"}), targets=(Target(upstream="openai"),)),
        )
    )
    found = table.candidates("openai", "gpt-6", {"team": "a", "env": "x"}, "k2")
    assert [route.name for route in found] == ["support", "team"]
    assert [route.name for route in table.candidates("other", None, {}, "k1")] == ["vip"]
    assert table.strips() == {"support@3"}

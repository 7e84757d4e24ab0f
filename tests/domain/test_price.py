"""What an exchange costs, and when nobody knows."""

from __future__ import annotations

from datetime import UTC, datetime

import genai_prices
import pytest
from genai_prices.data import providers
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.exchange import Usage
from gateway.domain.price import Billed, Price, PriceBook

LIST = {"openai": "openai", "together": "openai", "anthropic": "anthropic"}


def test_cached_tokens_have_their_own_price() -> None:
    price = Price(input=2.0, output=8.0, cached_input=0.5)
    usage = Usage(input=1_000_000, cached=400_000, output=100_000)
    assert price.cost(usage) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5 + 0.1 * 8.0)


def test_without_a_price_of_their_own_cached_tokens_cost_what_others_cost() -> None:
    assert Price(input=2.0, output=8.0).cost(Usage(input=1_000_000, cached=1_000_000, output=0)) == 2.0


def test_an_upstream_that_counts_more_cached_than_input_tokens_is_not_paid_back() -> None:
    assert Price(input=2.0, output=8.0, cached_input=0.0).cost(Usage(input=10, cached=999, output=0)) == 0.0


@pytest.mark.parametrize("usage", [Usage(), Usage(input=5), Usage(output=5)])
def test_unknown_usage_is_unpriced_and_never_free(usage: Usage) -> None:
    assert Price(input=1.0, output=1.0).cost(usage) is None


def test_a_model_that_nobody_knows_is_unpriced_and_never_free() -> None:
    book = PriceBook({}, LIST)
    usage = Usage(input=100, output=10)
    assert book.cost("openai", "a-model-of-nobody", usage) is None
    assert book.cost("openai", None, usage) is None


def test_a_price_of_the_users_own_wins_then_its_star_then_the_library() -> None:
    own = {("together", "my-model"): Price(input=1.0, output=1.0), ("together", "*"): Price(input=3.0, output=3.0)}
    book = PriceBook(own, LIST)
    usage = Usage(input=1_000_000, output=0)
    assert book.cost("together", "my-model", usage) == 1.0
    assert book.cost("together", "another", usage) == 3.0
    assert book.cost("openai", "gpt-4o-mini", usage) == pytest.approx(0.15)


def test_the_library_is_asked_by_the_providers_protocol() -> None:
    book = PriceBook({}, LIST)
    usage = Usage(input=1_000_000, output=1_000_000)
    assert (book.cost("anthropic", "claude-3-5-haiku-latest", usage) or 0) > 0
    assert book.cost("anthropic", "gpt-4o-mini", usage) is None


# --- the library's prices, without the library's arithmetic ----------------------------------------------

NOW = 1_790_000_000.0
TOKENS = st.sampled_from([0, 1, 999, 100_000, 100_001, 200_000, 200_001, 272_001, 1_000_000])
PROTOCOLS = {"openai": "openai", "anthropic": "anthropic", "google": "gemini"}
MODELS = [(PROTOCOLS[p.id], p.id, model.id) for p in providers if p.id in PROTOCOLS for model in p.models]


@given(
    st.sampled_from(MODELS),
    TOKENS,
    TOKENS,
    TOKENS,
    TOKENS,
    TOKENS,
    TOKENS,
    st.sampled_from([None, "flex", "priority"]),
)
@settings(max_examples=2000, deadline=None)
def test_every_price_is_the_librarys(
    named: tuple[str, str, str], fresh: int, cached: int, written: int, hour: int, output: int, heard: int,
    tier: str | None,
) -> None:  # fmt: skip
    """Sizes on both sides of every tier, cached and written tokens, service tiers, prices that change by date."""
    protocol, provider, model = named
    usage = Billed(
        input=fresh + cached + written + heard, cached=cached, output=output, cache_written=written,
        cache_written_1h=min(hour, written), audio_input=heard, audio_output=min(heard, output), tier=tier,
    )  # fmt: skip
    ours = PriceBook({}, {"p": protocol}, lambda: NOW).cost("p", model, usage)
    try:
        theirs = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input, cache_read_tokens=cached, cache_write_tokens=written,
                cache_write_1h_tokens=usage.cache_written_1h, output_tokens=output, input_audio_tokens=heard,
                output_audio_tokens=usage.audio_output,
            ),
            model, provider_id=provider, genai_request_timestamp=datetime.fromtimestamp(NOW, UTC),
            price_context={"service_tier": tier} if tier else None,
        )  # fmt: skip
    except LookupError:  # a family's name, under which nothing is sold
        assert ours is None
        return
    except ValueError:
        return  # cached and heard tokens overlap, and the library does not guess
    if ours is None:
        prices = theirs.model_price
        assert (prices.input_mtok is None and usage.input) or (
            prices.output_mtok is None and (output or not usage.input)
        )
    else:
        assert ours == pytest.approx(float(theirs.total_price), rel=1e-9, abs=1e-12)


def test_a_model_that_is_paid_by_the_minute_has_no_price_per_token() -> None:
    assert PriceBook({}, LIST).cost("openai", "whisper-1", Usage(input=100, output=10)) is None


def test_a_price_that_changes_by_the_hour_is_looked_up_again() -> None:
    """DeepSeek's chat model was cheaper at night: 16:30 to 00:30 UTC."""
    now = [datetime(2025, 5, 1, 12, tzinfo=UTC).timestamp()]
    book = PriceBook({}, {"deepseek": "?"}, lambda: now[0])
    usage = Usage(input=1_000_000, output=1_000_000)
    day = book.cost("deepseek", "deepseek-chat", usage)
    now[0] += 6 * 3600
    night = book.cost("deepseek", "deepseek-chat", usage)
    assert day is not None
    assert night == pytest.approx(day / 2)


def test_cached_tokens_that_were_written_cost_more_than_fresh_ones() -> None:
    book = PriceBook({}, LIST)
    plain, written = (
        book.cost("anthropic", "claude-3-5-haiku-latest", Billed(input=1_000_000, output=0, cache_written=n))
        for n in (0, 1_000_000)
    )
    assert plain == pytest.approx(0.8)
    assert written == pytest.approx(1.0)


COUNTED = st.builds(
    Billed, input=TOKENS, output=TOKENS, cached=TOKENS, reasoning=TOKENS, cache_written=TOKENS,
    cache_written_1h=TOKENS, audio_input=TOKENS, audio_output=TOKENS,
)  # fmt: skip


@given(COUNTED, st.sampled_from(MODELS))
def test_parts_that_exceed_their_whole_never_make_a_cost_negative(
    usage: Billed, named: tuple[str, str, str]
) -> None:
    cost = PriceBook({}, {"p": named[0]}, lambda: NOW).cost("p", named[2], usage)
    assert cost is None or cost >= 0


_COUNT = st.none() | st.integers(0, 10**9)


@given(st.builds(Usage, input=st.integers(0, 10**9), cached=_COUNT, output=_COUNT, reasoning=_COUNT))
def test_the_short_way_for_ordinary_usage_costs_what_the_long_one_does(usage: Usage) -> None:
    counts = {name: getattr(usage, name) for name in usage.__struct_fields__}
    book = PriceBook({}, LIST)
    assert book.cost("openai", "gpt-4o-mini", usage) == book.cost("openai", "gpt-4o-mini", Billed(**counts))

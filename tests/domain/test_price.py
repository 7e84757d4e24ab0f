"""What an exchange costs, and when nobody knows."""

from __future__ import annotations

import pytest

from gateway.domain.exchange import Usage
from gateway.domain.price import Price, PriceBook

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

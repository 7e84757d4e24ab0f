"""What tokens cost. US dollars per one million tokens; an unknown model has no price, never a price of 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal

import genai_prices
import msgspec

from gateway.domain.exchange import Usage

Costing = Callable[[Usage], float | None]


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """USD per 1M tokens. Cached input costs as much as input unless it has its own price."""

    input: float
    output: float
    cached_input: float | None = None

    def cost(self, usage: Usage) -> float | None:
        """USD for this usage, None where the token counts are not known."""
        if usage.input is None or usage.output is None:
            return None
        cached = min(usage.cached or 0, usage.input)
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = usage.input - cached
        return (fresh * self.input + cached * cached_price + usage.output * self.output) / 1e6


class PriceBook:
    """The user's own prices first, then the `genai-prices` library's; each model is looked up once."""

    def __init__(self, own: Mapping[tuple[str, str], Price], protocols: Mapping[str, str]) -> None:
        """`own` is keyed by (provider, model), `protocols` gives each provider's wire format."""
        self._own = dict(own)
        self._protocols = dict(protocols)
        self._known: dict[tuple[str, str], Costing] = {}

    def cost(self, provider: str, model: str | None, usage: Usage) -> float | None:
        """USD, or None when the model is unpriced or its usage unknown."""
        if model is None or usage.input is None:
            return None
        key = (provider, model)
        costing = self._known.get(key)
        if costing is None:
            costing = self._look_up(key)
            if len(self._known) < 10_000:  # the model's name comes from the client
                self._known[key] = costing
        return costing(usage)

    def _look_up(self, key: tuple[str, str]) -> Costing:
        own = self._own.get(key) or self._own.get((key[0], "*"))
        if own is not None:
            return own.cost
        return _library_costing(key[1], _LIBRARY_PROVIDER.get(self._protocols.get(key[0], "")))


_LIBRARY_PROVIDER = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}


def _library_costing(model: str, provider: str | None) -> Costing:
    try:
        price = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1, output_tokens=1), model, provider_id=provider
        ).model_price
    except LookupError:
        return lambda usage: None
    fresh, answered, cached = price.input_mtok, price.output_mtok, price.cache_read_mtok
    if isinstance(fresh, Decimal) and isinstance(answered, Decimal) and isinstance(cached, Decimal | None):
        cached_input = None if cached is None else float(cached)
        return Price(input=float(fresh), output=float(answered), cached_input=cached_input).cost
    return lambda usage: _library_cost(model, provider, usage)


def _library_cost(model: str, provider: str | None, usage: Usage) -> float | None:
    """The slow way (about 0.1 ms), for models whose price depends on the request's size."""
    if usage.output is None:
        return None
    counted = genai_prices.Usage(
        input_tokens=usage.input, output_tokens=usage.output, cache_read_tokens=usage.cached or 0
    )
    return float(genai_prices.calc_price(counted, model, provider_id=provider).total_price)

"""What tokens cost. US dollars per one million tokens; an unknown model has no price, never a price of 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import msgspec
from genai_prices.types import ModelPrice, TieredPrices

from gateway.domain.exchange import Usage

Costing = Callable[[Usage], float | None]

_FOREVER = float("inf")


class Billed(Usage, frozen=True, kw_only=True):
    """Usage with the parts that some prices tell apart.

    `cache_written` (of it, `cache_written_1h` for an hour) and `audio_input` are parts of `input`,
    `audio_output` of `output`. `tier` is the `service_tier` that served, None for the ordinary one.
    """

    cache_written: int = 0
    cache_written_1h: int = 0
    audio_input: int = 0
    audio_output: int = 0
    tier: str | None = None


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


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What the library says of one model, for requests of more than `above` input tokens: USD per 1M tokens."""

    above: int
    input: float
    output: float
    cached: float
    written: float
    written_1h: float
    audio_input: float
    audio_output: float
    reasoning: float
    request: float

    def cost(self, usage: Usage) -> float:
        """USD for known counts; a part never exceeds its whole."""
        incoming, outgoing = usage.input or 0, usage.output or 0
        cached = min(usage.cached or 0, incoming)
        total = outgoing * self.output + self.request
        if self.reasoning != self.output:
            total += min(usage.reasoning or 0, outgoing) * (self.reasoning - self.output)
        if isinstance(usage, Billed):
            written = min(usage.cache_written, incoming - cached)
            hour = min(usage.cache_written_1h, written)
            heard = min(usage.audio_input, incoming - cached - written)
            total += hour * self.written_1h + (written - hour) * self.written + heard * self.audio_input
            total += min(usage.audio_output, outgoing) * (self.audio_output - self.output)
            incoming -= written + heard
        return (total + (incoming - cached) * self.input + cached * self.cached) / 1e6


class PriceBook:
    """The user's own prices first, then the `genai-prices` library's; each model is looked up once.

    A price that depends on the hour or on a date is looked up again every minute (`clock` gives seconds
    since the epoch); one that depends on the request's size is kept by size.
    """

    def __init__(
        self,
        own: Mapping[tuple[str, str], Price],
        protocols: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`own` is keyed by (provider, model), `protocols` gives each provider's wire format."""
        self._own = dict(own)
        self._protocols = dict(protocols)
        self._clock = clock
        self._known: dict[tuple[str, str, str | None], tuple[Costing, float]] = {}

    def cost(self, provider: str, model: str | None, usage: Usage) -> float | None:
        """USD, or None when the model is unpriced or its usage unknown."""
        if model is None or usage.input is None:
            return None
        key = (provider, model, None if type(usage) is Usage else usage.tier if isinstance(usage, Billed) else None)
        known = self._known.get(key)
        if known is None or (known[1] != _FOREVER and self._clock() > known[1]):
            known = self._look_up(*key)
            if len(self._known) < 10_000:  # the model's name comes from the client
                self._known[key] = known
        return known[0](usage)

    def _look_up(self, provider: str, model: str, tier: str | None) -> tuple[Costing, float]:
        own = self._own.get((provider, model)) or self._own.get((provider, "*"))
        if own is not None:
            return own.cost, _FOREVER
        library = _LIBRARY_PROVIDER.get(self._protocols.get(provider, ""))
        return _library_costing(model, library, tier, self._clock())


_LIBRARY_PROVIDER = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}


def _library_costing(model: str, provider: str | None, tier: str | None, now: float) -> tuple[Costing, float]:
    """The costing, and until when it holds (seconds since the epoch)."""
    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(),
            model,
            provider_id=provider,
            genai_request_timestamp=datetime.fromtimestamp(now, UTC),
            price_context={"service_tier": tier} if tier else None,
        )
    except LookupError:
        return _unpriced, _FOREVER
    changes = isinstance(found.model.prices, list) or bool(tier)
    return _costing(found.model_price), now + 60 if changes else _FOREVER


def _unpriced(usage: Usage) -> None:
    return None


def _costing(price: ModelPrice) -> Costing:
    """By the size of the request, where the price depends on it (all its tokens cost the tier's price)."""
    prices = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
    starts = sorted({-1, *(tier.start for tiered in prices for tier in tiered.tiers)}, reverse=True)
    sizes = tuple(_rates(price, start) for start in starts)
    has_input, has_output = (getattr(price, name) is not None for name in ("input_mtok", "output_mtok"))

    def cost(usage: Usage) -> float | None:
        given, made = usage.input or 0, usage.output
        if made is None or (given and not has_input) or (made and not has_output) or not (has_input or has_output):
            return None  # what it counts in (seconds, pictures) is not known
        return next(rates for rates in sizes if given > rates.above).cost(usage)

    only = sizes[0]
    if len(sizes) > 1 or not (has_input and has_output) or only.reasoning != only.output:
        return cost
    return _plain(only, cost)


def _plain(rates: Rates, otherwise: Costing) -> Costing:
    """`rates.cost` of ordinary usage in the fewest steps: each answer is priced, most of them so."""
    fresh, again, answered, request = rates.input, rates.cached, rates.output, rates.request

    def cost(usage: Usage) -> float | None:
        if type(usage) is not Usage:
            return otherwise(usage)
        given, made, cached = usage.input or 0, usage.output, usage.cached or 0
        if made is None:
            return None
        if cached > given:
            cached = given
        return (made * answered + request + (given - cached) * fresh + cached * again) / 1e6

    return cost


def _rates(price: ModelPrice, above: int) -> Rates:
    def of(name: str, otherwise: float = 0.0) -> float:
        value = getattr(price, name, None)
        if isinstance(value, TieredPrices):
            reached = [tier.price for tier in value.tiers if tier.start <= above]
            return float(reached[-1] if reached else value.base)
        return float(value) if isinstance(value, Decimal) else otherwise

    fresh, answered = of("input_mtok"), of("output_mtok")
    written = of("cache_write_mtok", fresh)
    return Rates(
        above=above,
        input=fresh,
        output=answered,
        cached=of("cache_read_mtok", fresh),
        written=written,
        written_1h=of("cache_write_1h_mtok", written),
        audio_input=of("input_audio_mtok", fresh),
        audio_output=of("output_audio_mtok", answered),
        reasoning=of("output_reasoning_mtok", answered),
        request=of("requests_kcount") * 1000,
    )

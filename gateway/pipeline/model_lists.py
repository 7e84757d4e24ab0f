"""What providers say in their own model lists of when a model is taken away.

The worker asks once a day, with our own key where there is one; what it was told is kept in a file beside the
store, which everybody reads who wants to know. What the config says of a model comes first.
"""

from __future__ import annotations

import datetime
import functools
import logging
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config
from gateway.files import write_whole

log = logging.getLogger(__name__)

FILE = "shutdowns.json"
EVERY_SECONDS = 86_400.0
RETRY_SECONDS = 3600.0
"""A provider that gave no usable answer is asked again after so long."""
_TIMEOUT = 10.0


class Told(msgspec.Struct, frozen=True):
    """What a provider said: the day of each model that has one. `next_at`: when it is asked again, in seconds since
    the epoch."""

    next_at: float = 0.0
    dates: dict[str, datetime.date] = {}


def refresh(config: Config, now: float) -> None:
    """Ask the providers of OpenAI's protocol to which we have a key and whose time has come; never raises for what
    they answer."""
    file = config.store.home / FILE
    known = _read(file)
    answers = {name: _asked(config, name, known.get(name, Told()), now) for name in config.providers}
    asked = {name: told for name, told in answers.items() if told is not None}
    if not asked:
        return
    try:
        write_whole(file, msgspec.json.encode(known | asked))
    except OSError as error:
        log.warning("%s: %s", file, error)
    _parsed.cache_clear()


def shutdown_date(config: Config, upstream: str, model: str) -> datetime.date | None:
    """The day on which a provider takes a model away: the config's word, else the provider's own; for a tuned model
    (`ft:BASE:...`) at the latest that of its base model."""
    provider = config.providers.get(upstream)
    if provider is None:
        return None
    dates = _read(config.store.home / FILE).get(upstream, Told()).dates | provider.shutdown_dates
    base = model.split(":")[1] if model.startswith("ft:") else model
    found = [date for name in {model, base} if (date := dates.get(name)) is not None]
    return dates.get(model) if model in provider.shutdown_dates else min(found, default=None)


def any_known(config: Config) -> bool:
    """Whether any provider's model has such a day."""
    if any(provider.shutdown_dates for provider in config.providers.values()):
        return True
    return any(told.dates for told in _read(config.store.home / FILE).values())


def _asked(config: Config, name: str, known: Told, now: float) -> Told | None:
    """What the provider says now; None where it is not to be asked."""
    provider, key = config.providers[name], config.key(name)
    if provider.protocol != "openai" or not key or now < known.next_at:
        return None
    import openai  # half a second, once a day

    client = openai.OpenAI(api_key=key, base_url=provider.base_url, timeout=_TIMEOUT, max_retries=0)
    try:
        answer: Any = client.get("/models", cast_to=object)
        listed = answer["data"]
        dates = {str(one["id"]): day for one in listed if (day := _day(one.get("shutdown_date"))) is not None}
    except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("provider %s does not list its models: %s", name, type(error).__name__)
        return Told(now + RETRY_SECONDS, known.dates)
    return Told(now + EVERY_SECONDS, dates)


def _day(said: object) -> datetime.date | None:
    """A day as a provider may write it: ISO 8601, with or without a time, or seconds since the epoch."""
    try:
        if isinstance(said, str):
            return datetime.date.fromisoformat(said[:10])
        if isinstance(said, int | float) and not isinstance(said, bool) and said > 0:
            return datetime.datetime.fromtimestamp(said, datetime.UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _read(file: Path) -> dict[str, Told]:
    """What is in the file, which is read again when it has changed; nothing where there is none."""
    try:
        return _parsed(file, file.stat().st_mtime_ns)
    except (OSError, msgspec.MsgspecError):
        return {}


@functools.lru_cache(maxsize=4)
def _parsed(file: Path, changed: int) -> dict[str, Told]:
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Told])

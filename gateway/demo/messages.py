"""The demo's labelled messages: made up from our own phrasings, or read from a file of the user's.

A made-up message is an ask, or two, with other sentences around it, then roughened the way people write:
no capitals, no full stops, slips of the finger, short words. Its label is the intent of the main ask.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import yaml

from gateway.errors import ConfigError

Split = Literal["train", "test"]

# Shares of the messages that have each trait. Chosen so that the set is learnable, yet not from keywords
# alone: word and character TF-IDF with a linear SVM is right on about 93 % after 400 rows, 96 % after 1,200.
_TERSE, _MIXED = 0.12, 0.02
_DETAIL, _SUBJECT, _ASIDE = 0.88, 0.16, 0.08
_SKEW = 3.4  # how much commoner the first asks of an intent are than its last


class Labelled(msgspec.Struct, frozen=True):
    """A text with its gold label; `split` is None where the source says nothing about it."""

    text: str
    label: str
    split: Split | None = None


class Intent(msgspec.Struct, frozen=True):
    """What phrasings.yaml holds for one label; `weight` is its share of the messages, as a proportion."""

    about: str
    weight: int
    asks: tuple[str, ...]
    details: tuple[str, ...]
    subjects: tuple[str, ...]
    terse: tuple[str, ...]
    asides: tuple[str, ...]


class Grammar(msgspec.Struct, frozen=True):
    """phrasings.yaml, read."""

    intents: dict[str, Intent]
    around: dict[str, tuple[str, ...]]
    mixed: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]


@cache
def grammar() -> Grammar:
    """The phrasings that ship with the package."""
    raw = yaml.safe_load(resources.files("gateway.demo").joinpath("phrasings.yaml").read_text("utf-8"))
    intents = {label: _intent(entry) for label, entry in raw["intents"].items()}
    around = {part: _lines(raw[part]) for part in ("greetings", "contexts", "moods", "signoffs")}
    slots = {name: _lines(block) for name, block in raw["slots"].items()}
    return Grammar(intents, around, _lines(raw["mixed"]), slots)


def descriptions() -> dict[str, str]:
    """A line on each built-in label, as a prompt would explain it."""
    return {label: intent.about for label, intent in grammar().intents.items()}


BUILT_IN = 2400
"""So many messages come with the package: with fewer, a gate that asks for 95 % would often refuse by chance."""


def messages(seed: int = 0, count: int = BUILT_IN) -> list[Labelled]:
    """`count` different made-up messages; a longer list of the same seed begins with the shorter one."""
    rng = random.Random(seed)
    found: dict[str, Labelled] = {}
    while len(found) < count:
        message = _compose(rng)
        found.setdefault(message.text, message)
    return list(found.values())


def load(path: str | Path) -> list[Labelled]:
    """The rows of a JSON-lines file with `text`, `label` and, where present, `split`; other keys are ignored.

    Raises:
        ConfigError: the file cannot be read, a row is wrong (file, line and key are named), or there is
            nothing to tell apart because fewer than two labels occur.
    """
    file = Path(path)
    rows = list(_rows(file))
    labels = {row.label for row in rows}
    if len(labels) < 2:
        raise ConfigError(f"{file}: {len(rows)} rows with {len(labels)} labels; at least 2 labels are needed")
    return rows


def _rows(file: Path) -> Iterator[Labelled]:
    try:
        content = file.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {error.start})") from error
    # Not splitlines(): a text may hold U+2028 and the like unescaped, and JSON allows that.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _row(f"{file}, line {number}", line)


def _row(where: str, line: str) -> Labelled:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigError(f'{where}: must be an object such as {{"text": "...", "label": "..."}}')
    split = entry.get("split")
    if split not in (None, "train", "test"):
        raise ConfigError(f'{where}, key \'split\': is {split!r}, must be "train" or "test", or left out')
    return Labelled(_string(where, entry, "text"), _string(where, entry, "label"), cast("Split | None", split))


def _string(where: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if key not in entry:
        raise ConfigError(f"{where}, key {key!r}: is missing")
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}, key {key!r}: is {value!r}, must be a text that is not empty")
    return value


def _intent(entry: dict[str, Any]) -> Intent:
    parts = (_lines(entry[part]) for part in ("asks", "details", "subjects", "terse", "asides"))
    return Intent(entry["about"], entry["weight"], *parts)


def _lines(block: str) -> tuple[str, ...]:
    return tuple(block.strip().split("\n"))


def _compose(rng: random.Random) -> Labelled:
    """One message: its label, its sentences, its slots filled, its wording roughened."""
    intents = grammar().intents
    label = rng.choices(list(intents), [intent.weight for intent in intents.values()])[0]
    kind = rng.random()
    if kind < _TERSE:
        text = rng.choice(intents[label].terse)
    elif kind < _TERSE + _MIXED:
        text = _two_asks(rng, label)
    else:
        text = _one_ask(rng, label)
    return Labelled(_roughened(rng, _filled(rng, text)), label)


def _one_ask(rng: random.Random, label: str) -> str:
    """The ask and up to three more sentences, with a greeting and a name now and then."""
    around, intent = grammar().around, grammar().intents[label]
    sentences = [_ask(rng, intent)]
    if rng.random() < _DETAIL:
        sentences.append(rng.choice(intent.details))
    if rng.random() < 0.33:
        sentences.insert(0, rng.choice(around["contexts"]))
    if rng.random() < _ASIDE:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(_other(rng, label).asides))
    if rng.random() < 0.30:
        sentences.append(rng.choice(around["moods"]))
    text = _addressed(rng, " ".join(sentences))
    return f"{rng.choice(intent.subjects)}\n{text}" if rng.random() < _SUBJECT else text


def _ask(rng: random.Random, intent: Intent) -> str:
    """One of the asks, the first ones far more often than the last, as a help desk's post is."""
    return intent.asks[int(len(intent.asks) * rng.random() ** _SKEW)]


def _two_asks(rng: random.Random, label: str) -> str:
    main = _ask(rng, grammar().intents[label])
    other = _ask(rng, _other(rng, label))
    return rng.choice(grammar().mixed).replace("{main}", main).replace("{other}", other)


def _other(rng: random.Random, label: str) -> Intent:
    intents = grammar().intents
    return intents[rng.choice([name for name in intents if name != label])]


def _addressed(rng: random.Random, body: str) -> str:
    around = grammar().around
    lines = rng.random() < 0.25  # a letter, rather than one paragraph
    if rng.random() < 0.40:
        body = rng.choice(around["greetings"]) + ("\n" if lines else " ") + body
    if rng.random() < 0.28:
        body += ("\n" if lines else " ") + rng.choice(around["signoffs"])
    return body


def _filled(rng: random.Random, text: str) -> str:
    """Every slot filled; one that occurs twice has one value, and {item2} is never {item}."""
    slots = grammar().slots
    item, item2 = rng.sample(slots["item"], 2)
    colour, colour2 = rng.sample(slots["colour"], 2)
    values = {name: rng.choice(options) for name, options in slots.items()}
    values |= {"item": item, "item2": item2, "colour": colour, "colour2": colour2}
    values["order"] = rng.choice(("PW-{}", "#{}", "no. {}")).format(rng.randrange(10_000, 100_000))
    amount = f"{rng.randrange(6, 240)}{rng.choice(('', '.50', '.99', '.00'))}"
    values["amount"] = rng.choice(("£{}", "{} euros", "€{}", "{} pounds")).format(amount)
    return re.sub(r"\{(\w+)\}", lambda slot: values[slot[1]], text)


_SHORT = {"please": "pls", "thanks": "thx", "you": "u", "are": "r", "because": "cos", "message": "msg"}


def _roughened(rng: random.Random, text: str) -> str:
    """The text as a hurried hand types it; at most one of the coarse changes, then perhaps a slip."""
    coarse: Sequence[tuple[float, Callable[[str], str]]] = (
        (0.18, str.lower),
        (0.10, lambda t: t.rstrip(".!? ")),
        (0.05, lambda t: re.sub(r"[.,!?']", "", t).lower()),
        (0.05, lambda t: re.sub(r"\b\w+\b", lambda word: _SHORT.get(word[0].lower(), word[0]), t)),
        (0.02, lambda t: t.upper()),
        (0.04, lambda t: t.rstrip(".") + rng.choice(("!!", "...", "???", " :(", " :)"))),
    )
    draw = rng.random()
    for share, change in coarse:
        if draw < share:
            text = change(text)
            break
        draw -= share
    return _slipped(rng, text) if rng.random() < 0.18 else text


def _slipped(rng: random.Random, text: str) -> str:
    """One or two longer words mistyped: a letter left out, doubled, or swapped with the next."""
    for _ in range(rng.choice((1, 1, 2))):
        words = list(re.finditer(r"[A-Za-z]{4,}", text))
        if not words:
            return text
        word = rng.choice(words)
        at = word.start() + rng.randrange(1, len(word[0]) - 1)
        kind = rng.randrange(3)
        pair = ("", text[at] * 2, text[at + 1] + text[at])[kind]
        text = text[:at] + pair + text[at + (2 if kind == 2 else 1) :]
    return text

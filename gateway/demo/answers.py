"""What the demo's teacher says to a request, in how many tokens and after how long. No sockets here."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import msgspec

from gateway.demo.messages import Labelled
from gateway.demo.prompts import Prompt, few_shot, triage, urgency

Messages = Sequence[Mapping[str, Any]]

WHOLE, ALTERED, BARE, CHAT = "whole", "altered", "bare", "chat"
"""How much of a prompt a request brought: all of a known one, something else around a known text, the text
and nothing else, or no known text at all."""


class Answer(msgspec.Struct, frozen=True):
    """What the teacher says. `prompt` names the prompt that it recognised, for `kind` "whole" only."""

    text: str
    kind: str
    prompt: str | None = None


class Answers:
    """A model that knows its tasks only from the prompt: no prompt, no label.

    With one of the demo's prompts, whole or changed, it gives the gold label of the text in the form that the
    prompt asks for; for a deterministic share `error_rate` of the texts it gives a label like the right one.
    A text that is not in `rows` gets the label whose texts share most words with it.
    """

    def __init__(self, rows: Sequence[Labelled], *, error_rate: float = 0.03, seed: int = 0) -> None:
        self.gold = {row.text.strip(): row.label for row in rows}
        self.error_rate, self.seed = error_rate, seed
        tasks = (few_shot(rows), triage())
        prompts = [variant for prompt in tasks for variant in (prompt, *prompt.changes())]
        # Largest first: an instruction beside the text would also fit into the smaller prompt's slot.
        self.prompts = sorted(prompts, key=Prompt.size, reverse=True)
        self.vocabulary = Vocabulary(rows)

    def to(self, messages: Messages) -> Answer:
        """The answer to a message array."""
        for prompt in self.prompts:
            text = prompt.text_in(messages)
            if text is not None:
                say = self.pile(text) if prompt.name.startswith("triage") else self.label(text)
                return Answer(prompt.answer(say), WHOLE, prompt.name)
        return self._unprompted([_content(message) for message in messages])

    def label(self, text: str) -> str:
        """The label that the teacher gives to `text`, wrong ones included."""
        label = self.gold.get(text.strip()) or self.vocabulary.nearest(text)
        draw = uniform(self.seed, "label", text)
        if draw >= self.error_rate:
            return label
        likely = self.vocabulary.confusable(label)
        return likely[int(len(likely) * (draw / self.error_rate) ** 2)]

    def pile(self, text: str) -> str:
        """The urgency that the teacher gives to `text`, wrong ones included."""
        right = urgency(text)
        wrong = uniform(self.seed, "pile", text) < self.error_rate
        return {"low": "normal", "normal": "low", "high": "normal"}[right] if wrong else right

    def _unprompted(self, contents: list[str]) -> Answer:
        """The answer to a request that is none of the demo's prompts."""
        last, everything = contents[-1], "\n".join(contents)
        text = next((part for part in _parts(last) if part in self.gold), None)
        if text == last.strip() and len(everything) < len(last) + 200:
            return Answer(_pick(_LOST, last), BARE)
        if text is None and not self._lists_labels(everything):
            return Answer(_pick(_CHATTY, everything), CHAT)
        if not self._lists_labels(everything):
            return Answer(_pick(_LOST, last), ALTERED)
        return Answer(self.label(text or list(_parts(last))[-1]), ALTERED)

    def _lists_labels(self, prompt: str) -> bool:
        labels = self.vocabulary.labels
        return sum(label in prompt for label in labels) * 2 >= len(labels)


class Vocabulary:
    """Which words speak for which label: a nearest-centroid classifier with TF-IDF weights."""

    def __init__(self, rows: Sequence[Labelled]) -> None:
        counts: dict[str, Counter[str]] = {}
        for row in rows:
            counts.setdefault(row.label, Counter()).update(_words(row.text))
        self.labels = sorted(counts)
        used = Counter(word for words in counts.values() for word in words)
        rarity = {word: math.log(1 + len(counts) / labels) for word, labels in used.items()}
        self.centroids = {
            label: _unit({word: count * rarity[word] for word, count in words.most_common(300)})
            for label, words in counts.items()
        }

    def nearest(self, text: str) -> str:
        """The label whose texts share most words with `text`."""
        words = _words(text)
        return max(self.labels, key=lambda label: sum(self.centroids[label].get(word, 0.0) for word in words))

    def confusable(self, label: str) -> list[str]:
        """The three other labels with the most similar texts, most similar first."""
        own = self.centroids[label]
        alike = {other: _dot(own, self.centroids[other]) for other in self.labels if other != label}
        return sorted(alike, key=lambda other: (-alike[other], other))[:3]


class Prefixes:
    """A provider's prompt cache, as its bill shows it: prefixes of 128 tokens, at least 1,024, already seen.

    Holds the last `capacity` prefixes. Tokens are counted as four characters each.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self.capacity = capacity
        self.seen: OrderedDict[bytes, None] = OrderedDict()

    def cached_tokens(self, messages: Messages) -> int:
        """How many tokens of these messages earlier calls have brought; remembers them for later ones."""
        text = "\n".join(f"{message.get('role')}:{_content(message)}" for message in messages)
        chain, hits, unbroken = hashlib.sha256(), 0, True
        for start in range(0, len(text) - 511, 512):
            chain.update(text[start : start + 512].encode("utf-8", "surrogatepass"))
            prefix = chain.digest()
            unbroken = unbroken and prefix in self.seen
            hits += unbroken
            self.seen[prefix] = None
            self.seen.move_to_end(prefix)
        while len(self.seen) > self.capacity:
            self.seen.popitem(last=False)
        return hits * 128 if hits >= 8 else 0


def pieces(text: str) -> list[str]:
    """The text as its estimated tokens: four characters each."""
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def prompt_tokens(messages: Messages) -> int:
    """The estimated size of a request: four characters a token, 4 tokens more a message, 3 for the reply."""
    return 3 + sum(4 + math.ceil(len(_content(message)) / 4) for message in messages)


class Delays(msgspec.Struct, frozen=True):
    """Seconds until the first token is there, and from each token to the next."""

    first: float
    between: float


def delays(seed: int, messages: Messages) -> Delays:
    """How long a hosted model of ordinary size would take over this request; the same for the same request.

    The wait for the first token is lognormal with a median of 350 ms, plus 0.08 ms for each token of the
    prompt; then a token takes 18 to 32 ms.
    """
    whole = "\n".join(_content(message) for message in messages)
    wait = min(max(uniform(seed, "wait", whole), 1e-6), 1 - 1e-6)
    first = 0.35 * math.exp(0.73 * NormalDist().inv_cdf(wait)) + 0.00008 * prompt_tokens(messages)
    return Delays(first, 0.018 + 0.014 * uniform(seed, "pace", whole))


def uniform(seed: int, purpose: str, text: str) -> float:
    """A number from 0 up to 1 that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _content(message: Mapping[str, Any]) -> str:
    """A message's text; of content parts, the text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _parts(content: str) -> Iterator[str]:
    """Where the text could be in a message of unknown shape: all of it, between marks, on its own line."""
    yield content.strip()
    for mark in (r'"""(.*?)"""', r"<message>(.*?)</message>"):
        yield from (found.strip() for found in re.findall(mark, content, re.DOTALL))
    yield from (line.strip() for line in content.split("\n") if line.strip())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _unit(vector: dict[str, float]) -> dict[str, float]:
    length = math.sqrt(sum(weight * weight for weight in vector.values())) or 1.0
    return {word: weight / length for word, weight in vector.items()}


def _dot(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(weight * other.get(word, 0.0) for word, weight in one.items())


def _pick(sentences: Sequence[str], text: str) -> str:
    return sentences[int(uniform(0, "sentence", text) * len(sentences))]


_LOST = (
    "I'm sorry to hear about that. I can't look into orders or accounts from here, but I'm glad to help you "
    "write to the company if you tell me more.",
    "Thanks for your message! Could you say what you would like me to do with it?",
    "That sounds frustrating. A good first step is to get in touch with the seller and have your details at "
    "hand. Would you like help with the wording?",
    "Happy to help. Are you asking me to answer this, to translate it or to check the wording?",
)

_CHATTY = (
    "Good question. In short: it depends on what matters most to you, so start with the simplest option, try "
    "it for a week and see what you would change.",
    "Here is a first version. Tell me whether the tone is right.\n\n1. Begin with the main point.\n"
    "2. Give one reason and one example.\n3. Close with what happens next.",
    "Certainly. The usual answer is yes, with two exceptions that rarely matter in practice. If yours is one "
    "of them, let me know the details.",
    "There are a few ways to see this. The most common one goes back further than people think, and it is "
    "the one that I would begin with.",
    "Of course! Short version: plan backwards from the end, leave some slack, write down what you decide.",
)

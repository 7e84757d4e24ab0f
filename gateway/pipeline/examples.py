"""An exchange -> an example to learn from, or the one reason why there is none. Pure: what is read is given."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec

from gateway import providers
from gateway.domain.dataset import Split
from gateway.domain.exchange import Exchange
from gateway.domain.matching import TemplateIndex
from gateway.domain.template import Inputs, PromptTemplate
from gateway.domain.terms import NOTHING_SAID, Terms
from gateway.encoding import decoded
from gateway.pipeline.schemas import fits
from gateway.pipeline.scrub import scrubbed
from gateway.providers.answers import ToolCall
from gateway.providers.openai import read_chat

TRAIN_SHARE = 80
BYTES_PER_TOKEN = 4
"""Of UTF-8, in a rough estimate that is good enough to tell what no model can be trained on."""
TOOL_CALLS = "tool calls"
BEYOND = frozenset({TOOL_CALLS, "refusal", "empty answer"})
"""Answers that are no text, but that a candidate must not replace by one of its own."""
TERMS = "its provider's terms"
"""Why answers of a provider with `train_on_outputs: false` are dropped, approved ones too: they are still its."""
Scrub = Literal["off", "mask", "drop"]
LEAST_ANSWERS, MOST_DIFFERENT = 40, 0.4
"""So many answers, of which at most so large a share are different, make a closed set."""
_SESSION_CHARS = 20
_FINISHED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn"})
_OLD_PROMPT = "older prompt version, held out"
_OLD_ANSWERS = "older prompt version, answered otherwise"
_REFUSAL = re.compile(
    r"(?i)\b(i('|’)m sorry, (but )?i (can('|’)t|cannot)|i (can('|’)t|cannot|am unable to|am not able to) "
    r"(help|assist|comply|provide|answer)|as an ai\b)"
)
_SPECIAL = re.compile(r"<[|｜][\w .▁-]{1,40}[|｜]>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
"""How the chat formats of open and closed models mark their turns: in a training row they would be obeyed."""


class Teacher(msgspec.Struct, frozen=True):
    """Whose answers are learnt: what its requests ask for, and the `upstream/model` that answers them."""

    provider: str
    model: str | None
    target: str


class Scope(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a dataset is about: one teacher's answers to one prompt. `templates` begins with the one in use;
    `kept_back` are versions that give no rows, though their requests are no other version's; `students` are the
    targets of models that we have trained; `answers` are those that are given to the prompt in use, where they are
    a closed set; `tools` are the names of those that its requests declare; the rest is the task's policy."""

    templates: tuple[PromptTemplate, ...]
    kept_back: tuple[PromptTemplate, ...] = ()
    teacher: Teacher
    students: frozenset[str]
    feedback: Mapping[str, dict[str, Any]]
    answers: frozenset[str] | None = None
    tools: frozenset[str] = frozenset()
    scrub: Scrub = "mask"
    max_row_tokens: int = 65_536
    terms: Terms = NOTHING_SAID

    @cached_property
    def fixed(self) -> dict[str, int]:
        """How many characters of fixed text each template has, by its name."""
        return {template.name: sum(map(len, template.literals)) for template in self.templates}

    @cached_property
    def index(self) -> TemplateIndex:
        """All versions, as the relay tells them apart."""
        return TemplateIndex((*self.templates, *self.kept_back))

    def inputs(self, request: dict[str, Any]) -> Inputs | None:
        """The inputs of a request as a route that strips would cut it: what another version says more of is none
        of a wider one."""
        match = self.index.match(request)
        if match is None:
            return self.templates[0].strip(request)
        return match.inputs if match.template.name in self.fixed else None


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange that can be learnt from, before duplicates are settled.

    The greatest `rank` counts: (2 a person's correction, 1 approved, 0 plain; answered to the prompt in use).
    `beyond` is why its answer cannot be learnt, "" where it can; `tool_calls` are what it calls. `side`
    is `train` or `validation`, for ever. `session` are the words that requests of one conversation have in common,
    `words` those of the text. `found` are the kinds of personal data and secrets that were masked. `characters` are
    those of the whole prompt, beside the `tokens` that it was.
    """

    id: str
    text: str
    messages: list[dict[str, Any]]
    output: str
    tool_calls: list[dict[str, Any]] = []
    side: Split
    session: str
    words: str
    rank: tuple[int, bool]
    beyond: str = ""
    found: Mapping[str, int] = {}
    characters: int = 0
    tokens: int | None = None


def example(exchange: Exchange, scope: Scope) -> Example | str:
    """The example, or the reason why there is none."""
    if not exchange.complete or exchange.truncated:
        return "incomplete"
    if exchange.status is None or not 200 <= exchange.status < 300:
        return "error status"
    if not exchange.request:
        return "recorded without its body"
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    request = read_chat(body) if body else None
    inputs = scope.inputs(request) if request else None
    if request is None or inputs is None:
        return "does not match the template"
    answer = _answer(exchange, scope)
    if isinstance(answer, str):
        return answer
    output, rank, beyond = answer
    if not beyond and not fits(output, request.get("response_format")):
        return "not the JSON that was asked for"
    messages = inputs.messages
    text = _text(inputs, messages)
    words = words_of(session(inputs) if inputs.template.turns else text)
    side, current = _side_of(words), inputs.template is scope.templates[0]
    if side == "validation" and not current:
        return _OLD_PROMPT  # it would judge candidates by what another prompt asked for
    if not current and not beyond and scope.answers is not None and output not in scope.answers:
        return _OLD_ANSWERS
    found = Example(
        id=exchange.id, text=text, messages=messages, output=output, side=side, session=words, words=words,
        rank=(rank, current), beyond=beyond, tokens=None if exchange.stripped else exchange.input_tokens,
    )  # fmt: skip
    return _cleaned(inputs, found, scope) if beyond != TOOL_CALLS else _called(inputs, found, scope)


def _called(inputs: Inputs, found: Example, scope: Scope) -> Example | str:
    """As `_cleaned`, with the tool calls that the output spells; without those that may not be written."""
    made = _cleaned(inputs, found, scope)
    if isinstance(made, str):
        return _cleaned(inputs, msgspec.structs.replace(found, output=""), scope)
    try:
        calls = msgspec.json.decode(made.output)
    except msgspec.DecodeError:
        calls = []
    return msgspec.structs.replace(made, output="", tool_calls=calls)


def _cleaned(inputs: Inputs, found: Example, scope: Scope) -> Example | str:
    """The example with the inputs as they may be written, or why they may not."""
    counts: Counter[str] = Counter()
    text, messages, output, words = found.text, found.messages, found.output, found.words
    if scope.scrub != "off":
        clean, output = scrubbed(inputs, output, counts)
        if counts and scope.scrub == "drop":
            return "personal data or a secret"
        if counts:
            messages = clean.messages
            text = _text(clean, messages)
    if _SPECIAL.search(text) or _SPECIAL.search(output):
        return "a model's special token"
    if len(text.encode()) + len(output.encode()) > scope.max_row_tokens * BYTES_PER_TOKEN:
        return "too long"
    if counts or inputs.template.turns:
        words = words_of(text)
    return msgspec.structs.replace(
        found, text=text, messages=messages, output=output, words=words, found=dict(counts),
        characters=scope.fixed[inputs.template.name] + len(text),
    )  # fmt: skip


def _text(inputs: Inputs, messages: list[dict[str, Any]]) -> str:
    """As `inputs.text`, where its messages are known."""
    content = messages[0]["content"] if not inputs.template.turns else None
    return content if isinstance(content, str) else inputs.text


def _answer(exchange: Exchange, scope: Scope) -> tuple[str, int, str] | str:
    """(what to learn, its rank, why it cannot be learnt), or the reason to drop the exchange: a person's
    correction before an approved answer before a plain one."""
    said = scope.feedback.get(exchange.id, {})
    corrected = said.get("corrected_output") or said.get("label")
    if corrected:
        return (corrected, 2, "") if _is_text(corrected) else "not valid text"
    target = exchange.target or f"{exchange.provider}/{exchange.model_requested}"
    if exchange.stripped or target in scope.students:
        return "answered by a candidate"
    if scope.terms.bars(target):
        return TERMS
    if said.get("score", 0) < 0:
        return "negative feedback"
    if Teacher(exchange.provider, exchange.model_requested, target) != scope.teacher:
        return "answered by another model"
    text, reason = _output(exchange)
    if reason and reason not in BEYOND:
        return reason
    return text, 1 if said.get("score", 0) > 0 else 0, reason


_OPENAI = providers.load("openai")


def _output(exchange: Exchange) -> tuple[str, str]:
    """(text, "") or ("", reason)."""
    plain = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    read = _OPENAI.read_answer(plain, streamed=exchange.streamed) if plain else None
    if read is None or read.error:
        return "", "unreadable answer"
    answer = read.choices[0]
    if answer.tool_calls:
        return _spelt(answer.tool_calls), TOOL_CALLS
    if answer.refusal or answer.finish_reason == "content_filter" or _REFUSAL.search(answer.text[:240]):
        return "", "refusal"
    if answer.finish_reason not in _FINISHED:
        return "", "not finished"
    if not answer.text.strip():
        return "", "empty answer"
    return (answer.text, "") if _is_text(answer.text) else ("", "not valid text")


def _spelt(calls: Iterable[ToolCall]) -> str:
    """Tool calls as one text, in OpenAI's form. Their ids, which differ from answer to answer, are counted anew."""
    written = [
        {"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(calls, 1)
    ]
    text = json.dumps(written, ensure_ascii=False)
    return text if _is_text(text) else ""


def closed_set(exchanges: Iterable[Exchange]) -> frozenset[str] | None:
    """The answers of these exchanges where they are few and come again and again; None where they do not."""
    known = [text for text, reason in map(_output, exchanges) if not reason]
    different = frozenset(known)
    return None if len(known) < LEAST_ANSWERS or len(different) > len(known) * MOST_DIFFERENT else different


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON lets half a surrogate pair through, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def session(inputs: Inputs) -> str:
    """What requests of one conversation have in common: what its user said first. Without turns, the input."""
    if not inputs.template.turns:
        return inputs.text
    said = ""
    for turn in inputs.turns:
        if turn.get("role") == "user":
            said += f"\n{turn.get('content')}"
        if len(said) > _SESSION_CHARS:  # "Hi" alone is no conversation of its own
            break
    return said or inputs.text


def split_of(text: str) -> Split:
    """The side on which an input is, for ever: a hash of its words alone decides, so that inputs which differ in
    case, spaces or punctuation only are on the same side."""
    return _side_of(words_of(text))


def _side_of(words: str) -> Split:
    number = int.from_bytes(hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest()[:8])
    return "train" if number % 100 < TRAIN_SHARE else "validation"


def words_of(text: str) -> str:
    """The words of a text, one space between them, in one case; the text itself where it has none."""
    if text.isascii():  # the same, five times as fast
        words = " ".join(text.translate(_PLAIN).split())
    else:
        words = " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
    return words or text.strip()


_WORD = re.compile(r"[^\W_]+")
_PLAIN = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}

"""Decides, before any upstream is called, where a request goes and with which bytes. Pure: no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from gateway.domain.matching import Match, TemplateIndex, fixed_size
from gateway.domain.route import LOCAL, Route, RouteTable, Target
from gateway.domain.template import Inputs, PromptTemplate
from gateway.providers.openai import read_chat
from gateway.proxy.alike import Alike

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """What a route may look at. `body` None: it is streamed through unseen. `is_chat`: it goes to a chat
    completions endpoint, whose body a template can match."""

    provider: str
    model: str | None
    streamed: bool = False
    tags: dict[str, str] = {}
    key_id: str | None = None
    task_hint: str | None = None
    route_name: str | None = None
    body: bytes | None = None
    is_chat: bool = False


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream to ask, and the exact body for it. `text`: the stripped input, for models in this process.

    `streamed` and `wants_usage` (of a stream) say in which form a model in this process must answer, which
    abstains below `min_confidence`, as a model elsewhere does that says how sure it is.
    """

    upstream: str
    model: str | None
    body: bytes | None
    stripped: bool = False
    text: str | None = None
    streamed: bool = False
    wants_usage: bool = False
    min_confidence: float = 0.0

    @property
    def label(self) -> str:
        return self.upstream if self.model is None else f"{self.upstream}/{self.model}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts in order: each is only made when the one before it failed before its first byte.

    `model` and `original` are the request's own model and body: an attempt with the very same body object
    sends it unchanged. `audited`: if a stripped attempt answers, a whole one is asked, too, for the record;
    `shadow` is asked if a whole one answers.
    """

    attempts: tuple[Attempt, ...]
    route: Route | None = None
    task: str | None = None
    model: str | None = None
    original: bytes | None = None
    audited: bool = False
    shadow: Attempt | None = None


class Switchboard(msgspec.Struct, frozen=True):
    """A route table with all templates; replaced whole when either changes. `withheld` are the
    templates that must not be stripped for now, whatever the table says; `raised` says by candidate
    (`upstream/model`) of how many percent of its answers are audited, where a suspicion asks for more than the
    table does."""

    table: RouteTable
    templates: TemplateIndex
    by_name: dict[str, PromptTemplate] = {}
    withheld: frozenset[str] = frozenset()
    raised: dict[str, float] = {}
    alike: Alike = msgspec.field(default_factory=Alike)

    @classmethod
    def build(
        cls,
        table: RouteTable,
        templates: Sequence[PromptTemplate],
        withheld: Collection[str] = (),
        raised: Mapping[str, float] | None = None,
    ) -> Switchboard:
        """`templates`: all that there are, since what one would strip may be another one's request."""
        by_name = {template.name: template for template in templates}
        return cls(
            table=table,
            templates=TemplateIndex(templates),
            by_name=by_name,
            withheld=table.strips() & frozenset(withheld),
            raised=dict(raised or {}),
            alike=Alike(templates),
        )

    def plan(self, request: Incoming, dice: Callable[[], float]) -> Plan:
        """The first route that fits decides; without one, the request goes to its provider as it is."""
        if not self.table.routes:
            attempts = (_whole(request, request.provider, request.model),)
            return Plan(attempts=attempts, task=request.task_hint, model=request.model, original=request.body)
        routes = self.table.candidates(request.provider, request.model, request.tags, request.key_id)
        if request.route_name is not None:
            routes = [route for route in routes if route.name == request.route_name]
        parsed: dict[str, Any] | None = None
        match: Match | None = None
        if request.is_chat and request.body is not None and any(_needs_task(route) for route in routes):
            parsed, match = self._read(request.body)
        task = request.task_hint or (match.template.task if match else None)
        for route in routes:
            if route.match.task is None or route.match.task == task:
                return self._along(route, request, parsed, match, task, dice)
        attempts = (_whole(request, request.provider, request.model),)
        return Plan(attempts=attempts, task=task, model=request.model, original=request.body)

    def _read(self, body: bytes) -> tuple[dict[str, Any] | None, Match | None]:
        found = self.alike.read(body)
        if found is not None:
            return found
        parsed = read_chat(body)
        match = self.templates.match(parsed) if parsed is not None else None
        if parsed is not None and match is not None:
            self.alike.met(body, parsed, match)
        return parsed, match

    def _along(
        self,
        route: Route,
        request: Incoming,
        parsed: dict[str, Any] | None,
        match: Match | None,
        task: str | None,
        dice: Callable[[], float],
    ) -> Plan:
        first = self._aim(route.choose(_point(route, request, parsed, dice)), request, parsed, match)
        attempts: list[Attempt] = [] if first is None else [first]
        for fallback in _fallbacks(route, request):
            if all((fallback.upstream, fallback.body) != (other.upstream, other.body) for other in attempts):
                attempts.append(fallback)  # the same request to the same place would fail the same way
        stripped = first is not None and first.stripped
        shadow = route.shadow
        return Plan(
            attempts=tuple(attempts),
            route=route,
            task=task,
            model=request.model,
            original=request.body,
            audited=first is not None and first.stripped and self._is_audited(route, first, dice),
            shadow=self._aim(shadow.target, request, parsed, match)
            if shadow is not None and not stripped and dice() * 100 < shadow.percent
            else None,
        )

    def _is_audited(self, route: Route, attempt: Attempt, dice: Callable[[], float]) -> bool:
        percent = max(route.audit, self.raised.get(attempt.label, 0.0)) if self.raised else route.audit
        return percent > 0 and dice() * 100 < percent

    def _aim(
        self, target: Target, request: Incoming, parsed: dict[str, Any] | None, match: Match | None
    ) -> Attempt | None:
        """The attempt at this target; None when it strips and the request does not match its template, or another
        one better, or when the template is withheld."""
        if target.strip is None:
            return _whole(request, target.upstream, target.model or request.model)
        if parsed is None or (target.upstream == LOCAL and not _asks_for_one_text(parsed)):
            return None
        if target.min_confidence > 0 and parsed.get("n") not in (None, 1):
            return None  # of several answers, which one is it to be sure of?
        if target.strip in self.withheld:
            return None
        if match is not None and match.template.name == target.strip:
            return _stripped(target, request, match.inputs, parsed)
        if match is not None and _says_more(match.template, self.by_name[target.strip]):
            return None  # what that one knows as prompt would be input here
        inputs = self.by_name[target.strip].strip(parsed)
        return None if inputs is None else _stripped(target, request, inputs, parsed)


def _says_more(found: PromptTemplate, wanted: PromptTemplate) -> bool:
    """Whether a request that matches `found` is none of `wanted`: it is of another version, or there is more fixed
    text in another task's template."""
    return found.task == wanted.task or fixed_size(found) > fixed_size(wanted)


def _needs_task(route: Route) -> bool:
    return route.match.task is not None or any(route.strips)


def _point(route: Route, request: Incoming, parsed: dict[str, Any] | None, dice: Callable[[], float]) -> float:
    """Where on the line of the weights a request stands: what belongs together stays together, also when the
    share of the first target grows."""
    if len(route.targets) == 1 or route.sticky == "none":
        return dice()
    whose = request.key_id if route.sticky == "key" else _session(request, parsed)
    if not whose:
        return dice()
    digest = hashlib.blake2b(f"{route.name}\0{whose}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _session(request: Incoming, parsed: dict[str, Any] | None) -> str | None:
    """The conversation or the user that a request names: by a tag, or by OpenAI's fields for it."""
    named = request.tags.get("session") or request.tags.get("user")
    if named or parsed is None:
        return named
    fields = (parsed.get(name) for name in ("safety_identifier", "user"))
    return next((value for value in fields if isinstance(value, str) and value), None)


def _asks_for_one_text(parsed: dict[str, Any]) -> bool:
    """Whether an answer of one plain text is all that was asked for; a model in this process has nothing else."""
    more = ("logprobs", "top_logprobs", "audio", "logit_bias", "stop")
    return parsed.get("n") in (None, 1) and not any(parsed.get(key) for key in more)


def _fallbacks(route: Route, request: Incoming) -> list[Attempt]:
    if not route.fallbacks:
        return [_whole(request, request.provider, request.model)]
    return [_whole(request, target.upstream, target.model or request.model) for target in route.fallbacks]


def _stripped(target: Target, request: Incoming, inputs: Inputs, parsed: dict[str, Any]) -> Attempt:
    model = target.model or request.model
    options = parsed.get("stream_options")
    return Attempt(
        upstream=target.upstream,
        model=model,
        body=rewrite(request.body or b"", model=model, messages=inputs.messages),
        stripped=True,
        text=inputs.text if target.upstream == LOCAL else None,
        streamed=request.streamed,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        min_confidence=target.min_confidence,
    )


def _whole(request: Incoming, upstream: str, model: str | None) -> Attempt:
    body = request.body
    if body is not None and model is not None and request.model is not None and model != request.model:
        body = _with_model(body, model)
    return Attempt(upstream=upstream, model=model, body=body)


def _with_model(body: bytes, model: str) -> bytes:
    """The body for another model; the same object where the body names none (Gemini names it in the path)."""
    try:
        fields = _fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return rewrite(body, model=model) if "model" in fields else body


def rewrite(body: bytes, **changes: Any) -> bytes:
    """A JSON object with some top-level values replaced; the others keep their bytes."""
    return _encode(_fields(body) | changes)

"""The request as it goes to one upstream: where to, with which headers and whose key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from gateway.domain.route import LOCAL
from gateway.providers import Provider
from gateway.proxy import secrets, wire
from gateway.proxy.asked import Asked
from gateway.proxy.router import Attempt, Plan
from gateway.upstreams import Headers, Outgoing, header_lines

_ACCEPT_ENCODING = re.compile(rb"\r\naccept-encoding:[^\r\n]*", re.IGNORECASE)


class Sender(Protocol):
    """What is needed of the house: each provider's path in front of requests, wire format, and key of our own."""

    prefixes: Mapping[str, bytes]
    providers: Mapping[str, Provider]
    keys: Mapping[str, str]


def outgoing(sender: Sender, asked: Asked, plan: Plan, attempt: Attempt, length: int | None) -> Outgoing:
    """The request for an attempt's upstream. `length`: of the client's body, None where it came chunked."""
    head, upstream, body = asked.head, attempt.upstream, attempt.body
    lines = asked.lines.get(upstream)
    if lines is None:
        lines = asked.lines[upstream] = header_lines(_headers(sender, asked, attempt))
    # a model can stand in the path; those that are not the client's own are a route's, and few
    place = upstream if attempt.model == plan.model else f"{upstream}/{attempt.model}"
    path = asked.paths.get(place)
    if path is None:
        path = asked.paths[place] = _path(sender, asked, plan, attempt)
    return Outgoing(
        method=head.method,
        path=path,
        lines=lines,
        body=body,
        length=length if body is None or body is plan.original else len(body),
        has_body=head.has_body,
        websocket=head.offers_websocket,
        model=attempt.model,
        text=attempt.text,
        streamed=attempt.streamed,
        wants_usage=attempt.wants_usage,
        min_confidence=attempt.min_confidence,
    )


def is_home(sender: Sender, asked: Asked, attempt: Attempt) -> bool:
    """Whether it goes where the client sent it, with the client's own key."""
    return attempt.upstream == asked.place.provider and attempt.upstream not in sender.keys


def _path(sender: Sender, asked: Asked, plan: Plan, attempt: Attempt) -> bytes:
    upstream, place = attempt.upstream, asked.place
    if upstream == LOCAL:
        return place.path
    path = place.path
    if upstream != place.provider:
        path = wire.join(sender.prefixes[upstream], place.rest)
    if attempt.model is not None and attempt.model != plan.model:
        path = asked.provider.aim(path, attempt.model)
    return path if is_home(sender, asked, attempt) else secrets.path_without_keys(path)


def plain_lines(asked: Asked, request: Outgoing, upstream: str) -> bytes:
    """A request's header lines without its wish for a content encoding: the answer has to be read on its way."""
    name = f"{upstream} plain"
    lines = asked.lines.get(name)
    if lines is None:
        lines = asked.lines[name] = _ACCEPT_ENCODING.sub(b"", request.lines)
    return lines


def _headers(sender: Sender, asked: Asked, attempt: Attempt) -> Headers:
    """The client's key goes to the provider that the client called, and to nobody else."""
    headers = wire.forwarded(asked.head)
    if not is_home(sender, asked, attempt):
        headers = secrets.without_keys(headers)
    key = sender.keys.get(attempt.upstream)
    if key is not None:
        headers.append(sender.providers[attempt.upstream].key_header(key))
    return headers

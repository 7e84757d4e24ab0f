"""What a request's head says, whatever its body is: where it leads, whose it is, what may be kept of it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.domain.exchange import task_name
from gateway.errors import BadRequest, GatewayError
from gateway.providers import Provider
from gateway.proxy import secrets, wire
from gateway.proxy.capture import kept_headers
from gateway.proxy.wire import Place, RequestHead

_LOG = {b"": "all", b"all": "all", b"on": "all", b"metadata": "metadata", b"off": "off"}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Read once for each distinct head. `lines` and `paths` cache, by upstream, the header lines and the path that
    go there.

    `secrets`: the keys that the client presents. `log`: how much the client lets us record (`x-unprompt-log`:
    all, metadata, off). `tags` as routes match them, `tags_kept` and everything else that is text with keys
    blanked out. `error`: why the request is refused.
    """

    head: RequestHead
    place: Place
    provider: Provider
    operation: str = "other"
    is_chat: bool = False
    secrets: tuple[bytes, ...] = ()
    key_id: str | None = None
    tags: dict[str, str] = {}
    tags_kept: dict[str, str] = {}
    task_hint: str | None = None
    route_name: str | None = None
    log: str = "off"
    method: str = ""
    endpoint: str = ""
    headers_kept: dict[str, str] = {}
    error: GatewayError | None = None
    lines: dict[str, bytes] = {}
    paths: dict[str, bytes] = {}


def read(
    head: RequestHead, prefixes: Mapping[str, bytes], providers: Mapping[str, Provider], default: str
) -> Asked:
    """Never raises: what is wrong with the head stands in `error`."""
    presented = secrets.presented(head)
    error: GatewayError | None = None
    try:
        place = wire.locate(head.target, prefixes, default)
    except GatewayError as refused:
        unknown = head.target.partition(b"?")[0][:512].decode("latin-1")
        place, error = Place(default, b"", b"", unknown), refused
    log = _LOG.get((head.header(b"x-unprompt-log") or b"").strip().lower())
    if log is None:
        error = error or BadRequest(
            "x-unprompt-log must be 'metadata' or 'off'; leave it away to record everything"
        )
    provider = providers[place.provider]
    operation = provider.operation(place.endpoint)
    hint = head.text(b"x-unprompt-task")
    tags = wire.tags(head.header(b"x-unprompt-tags"))
    return Asked(
        head=head,
        place=place,
        provider=provider,
        operation=operation,
        is_chat=head.method == b"POST" and provider.name == "openai" and operation == "chat",
        secrets=presented,
        key_id=secrets.key_id(presented),
        tags=tags,
        tags_kept={secrets.blank_text(n, presented): secrets.blank_text(v, presented) for n, v in tags.items()},
        task_hint=task_name(secrets.blank_text(hint, presented)) if hint else None,
        route_name=head.text(b"x-unprompt-route"),
        log=log or "off",
        method=head.method.decode("latin-1"),
        endpoint=secrets.blank_text(place.endpoint, presented),
        headers_kept=kept_headers(head.first, presented),
        error=error,
        lines={},
        paths={},
    )

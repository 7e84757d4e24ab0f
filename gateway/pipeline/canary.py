"""The steps by which a candidate takes over: asked in the shadow, then some of the traffic, then all of it.

While a newcomer takes its steps, the rest stays with whoever served before: requests stand on a line from 0 to
100 (`proxy.router`), the newcomer takes the first of it, the candidate before it keeps what is left of its own
part, and the incumbent keeps its own. So nobody changes sides twice.
"""

from __future__ import annotations

import msgspec

from gateway.config import TaskPolicy
from gateway.pipeline.routes_text import RouteDict

HARM_AT = 100.0
"""A canary is taken back when the evidence against the candidate, from its first request on, reaches this: one that
is just allowed is taken back in at most 1 of 100 canaries by each test (Ville's inequality)."""


class Step(msgspec.Struct, frozen=True):
    """`share`: percent of the requests that the candidate answers. `shadow`: of so many percent of those that the
    incumbent answers it is asked, too, and nobody waits for it."""

    share: float
    shadow: float = 0.0


def steps(policy: TaskPolicy, first: Step | None = None) -> tuple[Step, ...]:
    """What the policy asks for, from the first to the last; `first`: where a person begins instead. Without audits
    no answer of a canary could be judged: then it is all at once."""
    parts = policy.canary if policy.audit else ()
    canary = [Step(percent) for percent in sorted({*parts}) if percent < policy.share]
    planned = ([Step(0.0, policy.shadow)] if policy.shadow else []) + [*canary, Step(policy.share)]
    if first is None:
        return tuple(planned)
    return (first, *(step for step in planned if step.share > first.share))


def steps_of(text: bytes | str | None) -> tuple[Step, ...]:
    """The steps that a row of `promotions` notes as those still to come."""
    return msgspec.json.decode(text or b"[]", type=tuple[Step, ...])


# --- a promoted route -----------------------------------------------------------------------------------


def candidate_of(route: RouteDict) -> RouteDict:
    """The newest candidate of a promoted route, in the shadow or in the light, without its share; empty where the
    route strips nothing."""
    asked = [*([route["shadow"]] if route.get("shadow") else []), *_candidates(route)]
    return _bare(asked[0]) if asked else {}


def label_of(target: RouteDict) -> str:
    """`upstream/model`, as in the store."""
    return f"{target.get('upstream')}/{target.get('model')}"


def settled(route: RouteDict, *, on_trial: bool, newcomer: RouteDict) -> RouteDict | None:
    """Who serves beside a newcomer: the candidate of a promoted route that has taken all its steps, with the share
    (`weight`, percent) that it has without the newcomer. `on_trial`: the route's newest candidate has steps before
    it, and does not count. None: only the incumbent."""
    candidates = _candidates(route)
    out = [label_of(newcomer)] + ([label_of(candidate_of(route))] if on_trial else [])
    found = next((target for target in candidates if label_of(target) not in out), None)
    return None if found is None else found | {"weight": sum(target["weight"] for target in candidates)}


def staged(newcomer: RouteDict, beside: RouteDict | None, incumbent: RouteDict, step: Step) -> RouteDict:
    """The part of a route that says who answers, and who is only asked, at this step. `beside`: see `settled`."""
    place = {key: newcomer[key] for key in ("upstream", "model")}
    parts = [{**place, "weight": step.share, **newcomer}] if step.share > 0 else []
    kept = round(max(beside["weight"] - step.share, 0.0), 6) if beside else 0.0
    left = round(100 - step.share - kept, 6)
    if beside and kept > 0:
        parts.append(beside | {"weight": kept})
    if left > 0:
        parts.append({**incumbent, "weight": left} if parts else incumbent)
    asked = {"shadow": {**newcomer, "percent": step.shadow}} if step.shadow else {}
    return {"targets": parts, **asked}


def _candidates(route: RouteDict) -> list[RouteDict]:
    return [target for target in route.get("targets", []) if target.get("strip")]


def _bare(target: RouteDict) -> RouteDict:
    return {key: value for key, value in target.items() if key not in ("weight", "percent")}

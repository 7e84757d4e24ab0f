"""The steps by which a candidate takes over: asked in the shadow, then some of the traffic, then all of it."""

from __future__ import annotations

import msgspec

from gateway.config import TaskPolicy

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

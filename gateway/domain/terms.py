"""Whether a provider's terms let models be trained on its answers."""

from __future__ import annotations

import msgspec


class Terms(msgspec.Struct, frozen=True):
    """What the settings say, by the names of providers: whose answers must not be learnt, and whose may, expressly.
    Of others nothing is said; their answers are learnt."""

    barred: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def bars(self, target: str) -> bool:
        """Whether the answers of `upstream/model` must not be learnt."""
        return provider_of(target) in self.barred

    def is_unsaid(self, target: str) -> bool:
        """Whether nobody has said yet if the answers of `upstream/model` may be learnt."""
        return provider_of(target) not in self.barred | self.allowed


NOTHING_SAID = Terms()


def provider_of(target: str) -> str:
    """The upstream of an `upstream/model`."""
    return target.partition("/")[0]

"""Which endpoints an indexer should take and give back. Pure; no leader, no vote.

Every indexer sees the same signs of life and leases, and from them computes the same quotas: as
many endpoints each, give or take one. It takes free ones while it is below its quota and gives
back what is above it, so the others find as many free as they lack.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from kvatlas.common.ids import EndpointName, IndexerId


@dataclass(frozen=True, slots=True)
class View:
    """What an indexer knows when it decides.

    Attributes:
        me: the indexer.
        alive: all indexers that are alive.
        endpoints: how many endpoints there are in all.
        mine: those that are ours.
        free: those that nobody has and that we may take.
        neglected: those of `free` that have been free for so long that, quota or not, somebody
            must take them: indexers may be configured differently.
    """

    me: IndexerId
    alive: Sequence[IndexerId]
    endpoints: int
    mine: Collection[EndpointName]
    free: Collection[EndpointName]
    neglected: Collection[EndpointName] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to take and what to give back."""

    claim: list[EndpointName]
    resign: list[EndpointName]


def plan(view: View) -> Plan:
    """Decide.

    Each indexer prefers other endpoints, so that two seldom reach for the same one.
    """
    quota = _quota(view)
    missing = max(0, quota - len(view.mine))
    by_liking = sorted(view.free, key=lambda name: liking(view.me, name), reverse=True)
    claim = by_liking[:missing]
    claim += [name for name in by_liking[missing:] if name in view.neglected]
    surplus = max(0, len(view.mine) - quota)
    resign = sorted(view.mine, key=lambda name: liking(view.me, name))[:surplus]
    return Plan(claim, resign)


def chosen(alive: Collection[IndexerId], chore: str) -> IndexerId:
    """Choose who does a chore that one alone should do, though two would do no harm."""
    return max(alive, key=lambda indexer: liking(indexer, chore))


def liking(indexer: IndexerId, what: str) -> tuple[int, str]:
    """Weigh an indexer against a name: the same everywhere, different for each pair."""
    return xxh3_64_intdigest(f"{indexer} {what}".encode()), what


def _quota(view: View) -> int:
    everybody = sorted({*view.alive, view.me})
    least, more = divmod(view.endpoints, len(everybody))
    return least + (everybody.index(view.me) < more)

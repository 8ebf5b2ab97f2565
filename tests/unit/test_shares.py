"""How indexers share endpoints, each for itself."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.ids import EndpointName, IndexerId
from kvatlas.indexer.shares import View, chosen, plan

NAMES = [EndpointName(f"10.0.0.{number}:8000") for number in range(12)]
ONE, TWO = IndexerId("one"), IndexerId("two")


def view(
    mine: list[EndpointName],
    free: list[EndpointName],
    alive: tuple[IndexerId, ...] = (ONE, TWO),
    neglected: tuple[EndpointName, ...] = (),
) -> View:
    """Let `one` look at twelve endpoints."""
    return View(ONE, alive, len(NAMES), mine, free, neglected)


def test_one_alone_takes_all() -> None:
    """Nobody else is alive."""
    decided = plan(view([], NAMES, alive=(ONE,)))
    assert sorted(decided.claim) == sorted(NAMES)


def test_one_of_two_takes_half() -> None:
    """And prefers others than its neighbour does."""
    decided = plan(view([], NAMES))
    other = plan(View(TWO, (ONE, TWO), len(NAMES), [], NAMES))
    assert len(decided.claim) == len(other.claim) == 6
    assert set(decided.claim) != set(other.claim)


def test_what_is_above_the_share_is_given_back() -> None:
    """So much do others lack beside what is free."""
    assert len(plan(view(NAMES, [])).resign) == 6
    assert len(plan(view(NAMES[:9], NAMES[9:])).resign) == 3


def test_what_nobody_takes_is_taken_beyond_the_share() -> None:
    """Another indexer's configuration may not name it."""
    decided = plan(view(NAMES[:6], NAMES[6:], neglected=(NAMES[7],)))
    assert decided.claim == [NAMES[7]]


def test_a_chore_is_one_indexers() -> None:
    """Whoever asks, and several chores are not all the same one's."""
    alive = [IndexerId(f"indexer-{number}") for number in range(4)]
    chores = [chosen(alive, f"shard {number}") for number in range(64)]
    assert chores == [chosen(list(reversed(alive)), f"shard {number}") for number in range(64)]
    assert len(set(chores)) == 4


@dataclass
class World:
    """Leases, and indexers that look at them in any order."""

    owners: dict[EndpointName, IndexerId] = field(default_factory=dict)
    moves: int = 0

    def look(self, me: IndexerId, alive: list[IndexerId]) -> None:
        """Let one indexer decide and act."""
        mine = [name for name, owner in self.owners.items() if owner == me]
        free = [name for name in NAMES if self.owners.get(name) not in alive]
        decided = plan(View(me, alive, len(NAMES), mine, free))
        for name in decided.claim:
            self.owners[name] = me
        for name in decided.resign:
            del self.owners[name]
        self.moves += len(decided.claim)


@given(seed=st.integers(0, 2**32))
def test_whoever_joins_or_dies_all_is_shared_evenly(seed: int) -> None:
    """In a few looks, in any order; what need not move does not."""
    world, source = World(), random.Random(seed)
    everybody = [IndexerId(f"indexer-{number}") for number in range(6)]
    for _ in range(4):
        alive = source.sample(everybody, source.randint(1, len(everybody)))
        before = dict(world.owners)
        for _ in range(4):
            for me in source.sample(alive, len(alive)):
                world.look(me, alive)
        counts = Counter(world.owners.values())
        assert set(world.owners) == set(NAMES)
        assert set(counts) <= set(alive)
        shares = [counts[one] for one in alive]
        assert max(shares) - min(shares) <= 1
        if before and set(before.values()) == set(alive):
            assert world.owners == before

"""E12, stores and removals that make no sense at first: the index ends with what is there.

tests/property/test_index_equals_cache.py draws such histories, with faults between them, by rules.
"""

from __future__ import annotations

import random
import time
from collections import Counter

from tests.chaos.conftest import Report
from tests.fakes.block_fleet import SIZE
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import Scale, chaos_place
from tests.fakes.publisher import stored

BLOCKS = 40
MEDIA = ("GPU", "CPU")


async def test_e12_odd_orders_converge(scale: Scale, canary: Canary) -> None:
    """Unknown removals, double stores, removals that come first, two media."""
    recovered = []
    async with chaos_place(scale, canary) as place:
        for turn in range(scale.rounds):
            histories = [History(engine, turn) for engine in place.engines]
            began = time.monotonic()
            for _ in range(scale.batches):
                for history in histories:
                    await history.step()
            for history in histories:
                history.settle()
            recovered.append(await place.recovered(began))
            for engine in place.engines:
                await engine.publisher.publish({"type": "AllBlocksCleared"})
                engine.lose_all()
        unknown = sum(place.feed(engine).unknown_removed for engine in place.engines)
        assert unknown
    Report(
        "E12",
        "removals of what is not there, double stores, removals before stores, two media",
        f"index equals cache; {unknown} removals of what was not there",
        recovered,
    ).tell()


class History:
    """An engine that does as it likes, and what it holds by its own count."""

    def __init__(self, engine: ChaosEngine, seed: int) -> None:
        self.engine = engine
        self.source = random.Random(f"{engine.name} {seed}")
        self.copies: Counter[tuple[str, int]] = Counter()
        self.first_hash = 10_000 * (seed + 1)

    def tokens(self, number: int) -> list[int]:
        """Give the tokens of a block without a parent."""
        return [self.first_hash + number] * SIZE

    async def step(self) -> None:
        """Store or remove any block in any medium."""
        number, medium = self.source.randrange(BLOCKS), self.source.choice(MEDIA)
        name = self.first_hash + number
        if self.source.random() < 0.5:
            self.copies[medium, number] += 1
            event = stored([name], self.tokens(number), medium=medium)
        else:
            self.copies[medium, number] = max(0, self.copies[medium, number] - 1)
            event = {
                "type": "BlockRemoved", "block_hashes": [name], "medium": medium, "group_idx": 0,
            }  # fmt: skip
        await self.engine.publisher.publish(event)

    def settle(self) -> None:
        """Write what is there into the engine's own books."""
        held = {number for (_, number), count in self.copies.items() if count}
        self.engine.prompts += [(self.tokens(number), [0]) for number in sorted(held)]

"""Engines whose caches turn over, at a rate that is asked of them."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from kvatlas.common.ids import EndpointName
from tests.fakes.block_fleet import SIZE, BlockEngine, BlockFleet
from tests.fakes.publisher import FakePublisher, removed, stored

CHAIN_BLOCKS = 32
CACHE_BLOCKS = 8_000
"""Of an engine: at the rates of a soak it turns over within seconds."""
REPLAY_BATCHES = 10_000
"""As many as vLLM keeps."""
TICK_S = 0.02
BEHIND_MAX_S = 1.0
"""What a stalled loop has missed by more than this is left out instead of sent in a burst."""


@dataclass
class TurningEngine(BlockEngine):
    """An engine with a cache of a fixed size: what is stored drives out what is oldest."""

    held: int = 0

    async def step(self) -> None:
        """Store a chain, and remove the oldest ones, tail first, where there is no room."""
        events = []
        while self.held + CHAIN_BLOCKS > CACHE_BLOCKS:
            _, gone = self.prompts.pop(0)
            self.held -= len(gone)
            events.append(removed(*reversed(gone)))
        tokens = array("I", self.source.randbytes(4 * CHAIN_BLOCKS * SIZE)).tolist()
        hashes = list(range(self.next_hash, self.next_hash + CHAIN_BLOCKS))
        self.next_hash += CHAIN_BLOCKS
        self.held += CHAIN_BLOCKS
        self.prompts.append((tokens, hashes))
        await self.publisher.publish(*events, stored(list(hashes), list(tokens)))

    async def restart(self) -> None:
        """Die and come back with an empty cache."""
        self.prompts.clear()
        self.held = 0
        await self.publisher.restart()


@dataclass
class Load:
    """Engines that step at a rate.

    Attributes:
        engines: they take turns.
        blocks_per_s: of all engines together.
        sent: blocks stored so far.
    """

    engines: Sequence[TurningEngine]
    blocks_per_s: float
    sent: int = 0
    _turn: int = field(default=0, repr=False)

    async def run(self, seconds: float) -> None:
        """Store blocks at the rate for a while."""
        began = due = time.monotonic()
        pause_s = CHAIN_BLOCKS / self.blocks_per_s
        while due - began < seconds:
            now = time.monotonic()
            due = max(due, now - BEHIND_MAX_S)
            while due <= now:
                await self.engines[self._turn % len(self.engines)].step()
                self._turn += 1
                self.sent += CHAIN_BLOCKS
                due += pause_s
            await asyncio.sleep(TICK_S)


@asynccontextmanager
async def turning_fleet(names: Sequence[EndpointName], seed: int) -> AsyncIterator[BlockFleet]:
    """Run such engines, one index shard for all, until the context ends."""
    source = Random(seed)
    async with AsyncExitStack() as stack:
        engines: list[BlockEngine] = []
        for name in names:
            publisher = FakePublisher(replay_max=REPLAY_BATCHES)
            await stack.enter_async_context(publisher)
            engines.append(TurningEngine(name, publisher, source))
        yield BlockFleet(engines, 1)

"""Engines under load, a Redis, and indexers that share them: what E15 and E16 are tried on."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from kvatlas.common.ids import EndpointName
from tests.fakes.block_fleet import BlockEngine, BlockFleet
from tests.fakes.publisher import FakePublisher
from tests.fakes.redis_servers import Server

REPLAY_BATCHES = 10_000
"""As many as vLLM keeps."""
PAUSE_S = 0.004
WAIT_S = 15.0


@dataclass
class Fleet:
    """Engines whose caches are large, with copies, and beyond what can be replayed.

    Attributes:
        is_paused: whether the engines do nothing.
    """

    blocks: BlockFleet
    redis: Server
    source: random.Random
    is_paused: bool = False

    async def age(self, batches: int) -> None:
        """Let each engine send so many batches."""
        for number in range(batches):
            for engine in self.blocks.engines:
                await self._step(engine)
            if number % 200 == 199:
                await asyncio.sleep(0.02)

    async def run(self) -> None:
        """Keep the engines busy, for ever."""
        while True:
            if not self.is_paused:
                for engine in self.blocks.engines:
                    await self._step(engine)
            await asyncio.sleep(PAUSE_S)

    async def _step(self, engine: BlockEngine) -> None:
        if engine.prompts and self.source.random() < 0.2:
            await engine.copy()
        else:
            await engine.step()

    async def right(self, seconds: float = WAIT_S) -> float:
        """Wait, with the engines paused, until the index is what they hold; give the seconds."""
        began, self.is_paused = time.monotonic(), True
        with self.redis.client() as client:
            try:
                await self.blocks.settled([client], seconds)
            except AssertionError as error:
                raise AssertionError(f"{error}: {self.states()}") from error
        self.is_paused = False
        return time.monotonic() - began

    def states(self) -> dict[EndpointName, dict[str, str]]:
        """Read the state of each endpoint."""
        with self.redis.client(decode_responses=True) as client:
            return {
                engine.name: client.hgetall(self.blocks.shard_of(engine).endpoint(engine.name))
                for engine in self.blocks.engines
            }

    def epochs(self) -> dict[EndpointName, str]:
        """Read the epoch of each endpoint: the same as before, nothing was forgotten."""
        return {name: state["epoch"] for name, state in self.states().items()}

    def owners(self) -> Counter[str]:
        """Count the endpoints of each indexer."""
        return Counter(state.get("owner", "") for state in self.states().values())

    async def owned(self, indexers: int, seconds: float = WAIT_S) -> float:
        """Wait until so many indexers share all endpoints evenly; give the seconds."""
        began = time.monotonic()
        while not _is_even(owners := self.owners(), indexers):
            assert time.monotonic() - began < seconds, owners
            await asyncio.sleep(0.02)
        return time.monotonic() - began


def _is_even(owners: Counter[str], indexers: int) -> bool:
    counts = owners.values()
    return (
        not owners[""]
        and len(+owners) == indexers
        and max(counts) - min(count for count in counts if count) <= 1
    )


@asynccontextmanager
async def busy_fleet(redis: Server, engines: int, seed: int) -> AsyncIterator[Fleet]:
    """Run engines of which no replay tells all, for as long as the context is."""
    source = random.Random(seed)
    publishers = [FakePublisher(replay_max=REPLAY_BATCHES) for _ in range(engines)]
    made = [
        BlockEngine(EndpointName(f"127.0.2.{number}:1"), publisher, source, prompts_max=200)
        for number, publisher in enumerate(publishers)
    ]
    async with AsyncExitStack() as stack:
        for publisher in publishers:
            await stack.enter_async_context(publisher)
        fleet = Fleet(BlockFleet(made, 1), redis, source)
        task = asyncio.create_task(fleet.run())
        fleet.is_paused = True
        try:
            yield fleet
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

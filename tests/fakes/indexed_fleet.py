"""A fleet with its index in Redis, and lookups that go on meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.indexer.app import Indexer
from kvatlas.router.lookup import BlockIndex
from tests.fakes.block_fleet import BlockEngine, BlockFleet, block_fleet
from tests.fakes.redis_servers import Server
from tests.fakes.services import indexing

TICK_S = 0.01
LOOKUP_S = 0.1
"""Scripts on several servers share two cores with everything else (fixture `brisk`)."""
SLACK_S = 0.4
"""By which a lookup may be later than that on a busy machine."""


@dataclass
class Looking:
    """Lookups that go on and on, each for the longest chain of the next engine.

    Attributes:
        failures: those that failed, by reason.
        slowest_s: longest lookup, without the time for which our own loop stood still meanwhile.
    """

    index: BlockIndex
    fleet: BlockFleet
    found: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    stalled_s: float = 0.0

    async def run(self) -> None:
        """Look up for ever."""
        while True:
            for engine in self.fleet.engines:
                await self.once(engine)
                await asyncio.sleep(0.005)

    async def watch(self) -> None:
        """Sum up how long the loop stands still, on a machine that others use, too."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.stalled_s += time.monotonic() - began - TICK_S

    async def once(self, engine: BlockEngine) -> None:
        """Look one chain up: it is found or known to be unknown, in time."""
        began, stalled_s = time.monotonic(), self.stalled_s
        try:
            await self.index.match(self.fleet.all_shards(), engine.longest())
            self.found += 1
        except IndexUnavailable as error:
            self.failures[error.reason] += 1
        took_s = time.monotonic() - began
        await asyncio.sleep(TICK_S)
        self.slowest_s = max(self.slowest_s, took_s - (self.stalled_s - stalled_s))


@dataclass
class IndexedFleet:
    """A fleet, its indexer and a reader, over Redis servers of any kind.

    Attributes:
        masters: finds the servers that hold the index at the moment.
    """

    fleet: BlockFleet
    indexer: Indexer
    index: BlockIndex
    masters: Callable[[], Sequence[Server]]

    async def settled(self, masters: Sequence[Server] | None = None) -> None:
        """Wait until all masters together hold exactly what the engines hold."""
        asked = await asyncio.to_thread(self.masters) if masters is None else masters
        clients = [server.client() for server in asked]
        try:
            await self.fleet.settled(clients)
        finally:
            for client in clients:
                client.close()

    async def finds_all(self, seconds: float = 10.0) -> None:
        """Wait until each engine's longest chain is found with it, whole."""
        for engine in self.fleet.engines:
            chain = engine.longest()
            deadline = time.monotonic() + seconds
            while await self._length(engine.name, chain) != len(chain):
                assert time.monotonic() < deadline, engine.name
                await asyncio.sleep(0.05)

    async def _length(self, name: EndpointName, chain: list[BlockHash]) -> int:
        try:
            found = await self.index.match(self.fleet.all_shards(), chain)
        except IndexUnavailable:
            return -1
        return found[name].blocks if name in found else 0

    def rewrites(self) -> float:
        """Count the endpoints that were written again from memory because the index was behind."""
        value = self.indexer.metrics.registry.get_sample_value(
            "kvatlas_indexer_rewrites_total", {"reason": "index_changed"}
        )
        return value or 0.0

    def errors(self, reason: str) -> float:
        """Count what the indexer was refused, or did not get, for a reason."""
        value = self.indexer.metrics.registry.get_sample_value(
            "kvatlas_indexer_store_errors_total", {"reason": reason}
        )
        return value or 0.0

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Looking]:
        """Look up all the time until the context ends."""
        looking = Looking(self.index, self.fleet)
        tasks = [asyncio.create_task(looking.run()), asyncio.create_task(looking.watch())]
        try:
            yield looking
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def indexed_fleet(
    redis: Mapping[str, Any],
    masters: Callable[[], Sequence[Server]],
    shards: int,
    seed: int,
    reader: Mapping[str, Any] | None = None,
) -> AsyncIterator[IndexedFleet]:
    """Run two engines per shard over an empty Redis, until their first blocks are found."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(block_fleet(2 * shards, shards, seed))
        settings = fleet.settings(redis)
        index = BlockIndex.connect(fleet.settings(reader or redis).redis)
        stack.push_async_callback(index.aclose)
        indexer = await stack.enter_async_context(indexing(settings))
        running = IndexedFleet(fleet, indexer, index, masters)
        await fleet.steps(20)
        await running.settled()
        await running.finds_all()
        yield running

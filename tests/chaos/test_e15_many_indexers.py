"""E15, several indexers are active: they share the endpoints, and none writes what is another's."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvatlas.common.ids import EndpointName
from kvatlas.common.settings import Settings
from tests.chaos.conftest import Report
from tests.fakes.block_fleet import BlockFleet
from tests.fakes.chaos_place import Scale, own_redis
from tests.fakes.indexer_process import IndexerProcess, indexer_processes, write_config
from tests.fakes.many_indexers import Fleet, busy_fleet

LEASE_S = 0.5
MOVED_S = 5.0
"""From an indexer's death until its endpoints are others'."""


@dataclass
class Shared:
    """A fleet, and the indexers that share it."""

    fleet: Fleet
    indexers: list[IndexerProcess]
    settings: Settings
    epochs: dict[EndpointName, str]

    async def unharmed(self) -> None:
        """See that the index is right and nothing was forgotten on the way."""
        await self.fleet.right()
        assert self.fleet.epochs() == self.epochs


@asynccontextmanager
async def shared(engines: int, indexers: int, seed: int, **more: float) -> AsyncIterator[Shared]:
    """Run indexers until they have shared the engines of a busy fleet among themselves."""
    with own_redis() as redis, tempfile.TemporaryDirectory(prefix="kva-") as folder:
        async with busy_fleet(redis, engines, seed) as fleet:
            settings = fleet.blocks.settings({"url": redis.url})
            with indexer_processes(Path(folder), settings, indexers, **more) as made:
                await fleet.owned(indexers)
                await fleet.age(50)
                await fleet.right()
                yield Shared(fleet, made, settings, fleet.epochs())


@pytest.mark.timeout(120)
async def test_e15_endpoints_are_shared_evenly_and_move_whole(scale: Scale) -> None:
    """When an indexer joins, leaves or dies; nothing is forgotten and nothing is written twice."""
    moved = []
    async with shared(8, 2, 15) as place:
        fleet, (first, second) = place.fleet, place.indexers
        config = first.config.with_name("joined.yaml")
        write_config(config, place.settings)
        joined = IndexerProcess(config, first.log.with_name("joined.log"))
        for _ in range(scale.rounds):
            joined.start()
            await fleet.owned(3)
            await place.unharmed()
            second.kill()
            moved.append(await fleet.owned(2))
            await place.unharmed()
            second.start()
            await fleet.owned(3)
            await asyncio.to_thread(joined.stop)
            assert await fleet.owned(2) < MOVED_S
            await place.unharmed()
    Report(
        "E15",
        "indexers join, are killed with -9 and are stopped, under load",
        "endpoints are shared evenly again, in the same epochs, with the index right each time",
        moved,
    ).tell()


@pytest.mark.timeout(60)
async def test_e15_a_paused_owner_writes_nothing_when_it_goes_on() -> None:
    """It was paused for longer than its lease; what it then wants to write is another's."""
    async with shared(4, 2, 18, lease_s=LEASE_S) as place:
        paused = place.indexers[0]
        paused.signal(signal.SIGSTOP)
        try:
            await place.fleet.owned(1)
            await place.unharmed()
            await asyncio.sleep(0.3)
        finally:
            paused.signal(signal.SIGCONT)
        await place.fleet.owned(2)
        await place.unharmed()
        assert "endpoint.lost" in paused.log.read_text()


@pytest.mark.timeout(60)
async def test_e15_redis_comes_back_empty_and_owners_keep_what_they_have() -> None:
    """From memory, under a new epoch each; nobody takes what another remembers."""
    async with shared(4, 2, 19, lease_s=LEASE_S) as place:
        owners = {name: state["owner"] for name, state in place.fleet.states().items()}
        place.fleet.redis.kill()
        await asyncio.sleep(2 * LEASE_S)
        await asyncio.to_thread(place.fleet.redis.start)
        await place.fleet.right()
        for name, state in place.fleet.states().items():
            assert state["owner"] == owners[name]
            assert state["reason"] == "index_lost"


@pytest.mark.timeout(60)
async def test_e15_endpoints_come_and_go_without_a_restart() -> None:
    """The configuration file is read again, by each indexer when it finds it changed."""
    async with shared(4, 2, 20, lease_s=LEASE_S) as place:
        fleet, whole = place.fleet, place.fleet.blocks
        fewer = BlockFleet(whole.engines[:3], 1)
        began = time.monotonic()
        for indexer in place.indexers:
            write_config(indexer.config, fewer.settings({"url": fleet.redis.url}), lease_s=LEASE_S)
        last = whole.engines[3].name
        while fleet.states()[last].get("owner"):
            assert time.monotonic() - began < MOVED_S
            await asyncio.sleep(0.05)
        for indexer in place.indexers:
            write_config(indexer.config, place.settings, lease_s=LEASE_S)
        await fleet.owned(2)
        await place.unharmed()

"""A real Redis Cluster: eight shards, a failover that loses writes, a slot that moves."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName
from kvatlas.indexer.app import Indexer
from kvatlas.router.lookup import BlockIndex
from tests.fakes.block_fleet import BlockEngine, BlockFleet, block_fleet
from tests.fakes.redis_servers import Cluster, Server, running_cluster
from tests.fakes.services import indexing

# Six servers start, one dies and is replaced within seconds that are the cluster's, not ours.
pytestmark = pytest.mark.timeout(60)

SHARDS = 8
LOOKUP_S = 0.1
"""Eight scripts on six servers share two cores with everything else."""
SLACK_S = 0.4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run three masters and three replicas."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_cluster(Path(folder)) as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def lookup_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give lookups the time that this machine needs for them."""
    monkeypatch.setattr(limits, "LOOKUP_S", LOOKUP_S)


@dataclass
class Looking:
    """Lookups that go on and on, each for the longest chain of the next engine."""

    index: BlockIndex
    fleet: BlockFleet
    found: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Look up for ever."""
        while True:
            for engine in self.fleet.engines:
                await self.once(engine)
                await asyncio.sleep(0.005)

    async def once(self, engine: BlockEngine) -> None:
        """Look one chain up: it is found or known to be unknown, in time."""
        began = time.monotonic()
        try:
            await self.index.match(self.fleet.all_shards(), engine.longest())
            self.found += 1
        except IndexUnavailable:
            self.failed += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)


@dataclass
class Running:
    """A cluster with a fleet, an indexer and a reader."""

    cluster: Cluster
    fleet: BlockFleet
    indexer: Indexer
    index: BlockIndex
    clients: list[Redis] = field(default_factory=list)

    async def settled(self, masters: Sequence[Server] | None = None) -> None:
        """Wait until all masters together hold exactly what the engines hold."""
        asked = await asyncio.to_thread(self.cluster.masters) if masters is None else masters
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

    async def _length(self, name: EndpointName, chain: list[Any]) -> int:
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

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Looking]:
        """Look up all the time until the context ends."""
        looking = Looking(self.index, self.fleet)
        task = asyncio.create_task(looking.run())
        try:
            yield looking
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def started(cluster: Cluster, seed: int, **more: Any) -> AsyncIterator[Running]:
    """Run a fleet over an empty cluster, with everything in the index that the engines hold."""
    for master in cluster.masters():
        with master.client() as client:
            client.flushall()
    places = [server.address for server in cluster.servers[1:]]
    redis = {"mode": "cluster", "url": cluster.servers[0].url, "nodes": places, **more}
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(block_fleet(2 * SHARDS, SHARDS, seed))
        settings = fleet.settings(redis)
        index = BlockIndex.connect(settings.redis)
        stack.push_async_callback(index.aclose)
        indexer = await stack.enter_async_context(indexing(settings))
        running = Running(cluster, fleet, indexer, index)
        await fleet.steps(20)
        await running.settled()
        await running.finds_all()
        yield running


async def test_eight_shards_live_on_three_masters(cluster: Cluster) -> None:
    """Each shard is whole on one master, every master has some, and lookups merge them."""
    async with started(cluster, seed=1) as running:
        owners = {cluster.owner(shard.holders).port for shard in running.fleet.all_shards()}
        assert len(owners) == 3


async def test_replicas_answer_lookups(cluster: Cluster) -> None:
    """With read_from_replicas the scripts of lookups run on replicas, and find the same."""
    async with started(cluster, seed=2, read_from_replicas=True) as running:
        before = scripts_run(cluster)
        for engine in running.fleet.engines:
            await running.index.match(running.fleet.all_shards(), engine.longest())
        ran = {port: count - before[port] for port, count in scripts_run(cluster).items()}
        masters = {server.port for server in cluster.masters()}
        assert sum(count for port, count in ran.items() if port not in masters) >= 16 * SHARDS


def scripts_run(cluster: Cluster) -> dict[int, int]:
    """Count the calls of scripts by server."""
    counts = {}
    for server in cluster.servers:
        with server.client() as client:
            stats = client.info("commandstats")
        counts[server.port] = sum(
            int(stats[name]["calls"]) for name in stats if name.startswith("cmdstat_evalsha")
        )
    return counts


async def test_a_slot_moves_under_load(cluster: Cluster) -> None:
    """While a shard moves key by key lookups go on; then no block is lost and none too many."""
    async with started(cluster, seed=3) as running, running.looking() as looking:
        shard = running.fleet.shard_of(running.fleet.engines[0])
        slot, old = key_slot(shard.holders.encode()), cluster.owner(shard.holders)
        new = next(server for server in cluster.masters() if server is not old)
        moving = asyncio.create_task(asyncio.to_thread(cluster.move_slot, slot, new, 0.001))
        while not moving.done():
            await running.fleet.steps(1, pause_s=0.02)
        assert await moving > 100
        await running.fleet.steps(10)
        await running.settled()
        assert cluster.owner(shard.holders) is new
        await running.finds_all()
        assert looking.found > 0
        assert looking.slowest_s < LOOKUP_S + SLACK_S


async def test_a_failover_that_loses_writes_is_healed(cluster: Cluster) -> None:
    """A replica that missed acknowledged writes takes over; the index is made right again."""
    async with started(cluster, seed=4) as running, running.looking() as looking:
        victim = cluster.owner(running.fleet.shard_of(running.fleet.engines[0]).holders)
        masters, replica = cluster.masters(), replica_of(cluster, victim)
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            with victim.client() as client:
                # What is on its way would still arrive; what follows finds no way.
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            await running.fleet.steps(10)
            await running.settled(masters)
            await asyncio.to_thread(victim.kill)
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        await running.fleet.steps(5)
        await promoted(replica)
        await running.settled()
        await running.finds_all()
        assert running.rewrites() > 0, "nothing was lost: the test tests nothing"
        assert looking.failed > 0
        assert looking.slowest_s < LOOKUP_S + SLACK_S
        await asyncio.to_thread(victim.start)
    await well(cluster)


def replica_of(cluster: Cluster, master: Server) -> Server:
    """Find the replica of a master."""
    for server in cluster.servers:
        with server.client() as client:
            if client.info("replication").get("master_port") == master.port:
                return server
    raise AssertionError("it has no replica")


async def promoted(server: Server) -> None:
    """Wait until a replica has become a master."""
    for _ in range(300):
        with server.client() as client:
            if client.info("replication")["role"] == "master":
                return
        await asyncio.sleep(0.05)
    raise AssertionError("no failover")


async def well(cluster: Cluster) -> None:
    """Wait until the cluster is whole, for the next test."""
    for _ in range(300):
        if await asyncio.to_thread(cluster.is_well):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the cluster is not well")

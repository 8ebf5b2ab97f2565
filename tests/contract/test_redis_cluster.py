"""A real Redis Cluster: eight shards, a failover that loses writes, a slot that moves."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import Sample, SharedSample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import connect
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.indexer.gauge_writer import GaugeWriter, Seen
from kvatlas.router.flight_log import FlightLog
from kvatlas.router.flight_logs import new_router_id
from kvatlas.router.flight_stream import Clients
from kvatlas.router.flights import Board, Launch
from kvatlas.router.metrics import RouterMetrics
from tests.fakes.indexed_fleet import LOOKUP_S, SLACK_S, IndexedFleet, indexed_fleet
from tests.fakes.redis_servers import Cluster, Server, running_cluster

# Six servers start, one dies and is replaced within seconds that are the cluster's, not ours.
pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("brisk")]

SHARDS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run three masters and three replicas."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_cluster(Path(folder)) as made,
    ):
        yield made


@asynccontextmanager
async def started(cluster: Cluster, seed: int, **more: Any) -> AsyncIterator[IndexedFleet]:
    """Run a fleet over an empty cluster, with everything in the index that the engines hold."""
    for master in cluster.masters():
        with master.client() as client:
            client.flushall()
    places = [server.address for server in cluster.servers[1:]]
    redis = {"mode": "cluster", "url": cluster.servers[0].url, "nodes": places, **more}
    async with indexed_fleet(redis, cluster.masters, SHARDS, seed) as running:
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


@pytest.mark.parametrize("reads_replicas", [False, True])
async def test_gauges_are_dated_by_the_masters_that_hold_them(
    cluster: Cluster, *, reads_replicas: bool
) -> None:
    """Each model's gauges are whole on the master of its slot, and as old as they are."""
    url = cluster.servers[0].url
    settings = RedisSettings(mode="cluster", url=url, read_from_replicas=reads_replicas)
    client = connect(settings, timeout_s=2.0, connections_max=None)
    keys = [LoadKeys(ModelName(f"model {number}")) for number in range(6)]
    seen = Seen(Sample(is_up=True), time.monotonic() - 2.0, 0.2)
    for each in keys:
        await GaugeWriter(client, each).write({EndpointName("e:1"): seen})
        found = await GaugeReader(client).read(each)
        shared = SharedSample.from_text(found.texts[EndpointName("e:1")].decode())
        assert 2_000 <= found.now_ms - shared.at_ms < 3_000
    assert len({cluster.owner(each.gauges).port for each in keys}) > 1
    await client.aclose()


@pytest.mark.parametrize("from_replicas", [False, True])
async def test_flights_are_told_in_a_cluster(cluster: Cluster, *, from_replicas: bool) -> None:
    """Written to the master that has the stream, heard by the other router, and gone at the end."""
    settings = RedisSettings(
        mode="cluster", url=cluster.servers[0].url, read_from_replicas=from_replicas
    )
    logs = []
    for _ in range(2):
        reader = connect(settings, timeout_s=1.0, connections_max=None, reads_only=True)
        writer = connect(settings, timeout_s=1.0, connections_max=None)
        board, keys = Board(new_router_id(), 1_000.0), LoadKeys(ModelName(f"m{from_replicas}"))
        logs.append(FlightLog(keys, Clients(reader, writer, 1.0), board, RouterMetrics()))
    one, two = logs
    name = EndpointName("e:1")

    async def hears(requests: int) -> None:
        for _ in range(200):
            await two.begin_refresh()
            if two.board.stand(name).requests == requests:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it is not heard of")

    with closing(one.flight(Launch(0, name, 5))):
        await hears(1)
    await hears(0)
    for log in logs:
        await log.aclose()
        await log._stream._clients.reader.aclose()
        await log._stream._clients.writer.aclose()


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
        # They may fall short or, on a busy machine, be late; they are never refused.
        assert looking.failures.keys() <= {"timeout"}
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
        assert looking.failures
        assert looking.slowest_s < LOOKUP_S + SLACK_S
        # Not in a thread: a process that is bound to us ends with the thread that began it.
        victim.start()
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

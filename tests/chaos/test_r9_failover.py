"""R9, the master of Redis fails over: lookups fall back, then all is as it was.

The same for a Redis Cluster stands in tests/contract/test_redis_cluster.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Report
from tests.fakes.chaos_place import Scale
from tests.fakes.indexed_fleet import LOOKUP_S, SLACK_S, IndexedFleet, indexed_fleet
from tests.fakes.redis_servers import (
    Server,
    Watched,
    plain_options,
    running_sentinels,
    wait_until,
)
from tests.fakes.redis_servers import running as run_servers

# Sentinels need seconds to agree that a master is gone, and more to make another one.
pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("brisk")]


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Run a master with a replica and three sentinels."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_sentinels(Path(folder)) as made,
    ):
        yield made


@asynccontextmanager
async def started(
    watched: Watched, seed: int, shards: int = 2, **more: Any
) -> AsyncIterator[IndexedFleet]:
    """Run a fleet over what the sentinels watch."""
    redis = {
        "mode": "sentinel",
        "sentinels": [sentinel.address for sentinel in watched.sentinels],
        **more,
    }
    async with indexed_fleet(redis, lambda: [watched.master()], shards, seed) as running:
        yield running


async def test_r9_a_killed_master_that_took_writes_along_is_healed(
    watched: Watched, scale: Scale, turn: int
) -> None:
    """The replica that missed acknowledged writes becomes master; the index is made right."""
    shards = scale.engines // 2
    async with started(watched, 1 + turn, shards) as running, running.looking() as looking:
        victim = watched.master()
        replica = next(server for server in watched.servers if server is not victim)
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            with victim.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            await running.fleet.steps(scale.batches, pause_s=0)
            await running.settled([victim])
            await asyncio.to_thread(victim.kill)
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        # No engine says anything: only the change of servers can tell that something is missing.
        await asyncio.to_thread(wait_until, lambda: watched.master() is replica, "failover", 20.0)
        began = time.monotonic()
        await running.settled()
        took_s = time.monotonic() - began
        await running.finds_all()
        assert running.rewrites() > 0, "nothing was lost: the test tests nothing"
        assert looking.failures
        assert looking.slowest_s < LOOKUP_S + SLACK_S
    Report(
        "R9",
        "replica stopped, so that it misses writes; master kill -9; sentinels fail over",
        f"lookups fail for {', '.join(sorted(looking.failures))}, "
        f"{running.rewrites():.0f} endpoints written again from memory",
        [took_s],
    ).tell()


async def test_r9_a_master_that_becomes_a_replica_is_left(watched: Watched) -> None:
    """What was written to the old master after the switch is written to the new one, too."""
    async with started(watched, seed=2) as running:
        old = watched.master()
        new = next(server for server in watched.servers if server is not old)
        with watched.sentinels[0].client() as client:
            await asyncio.to_thread(
                wait_until, lambda: client.execute_command("SENTINEL", "FAILOVER", "mymaster"), "ok"
            )
        await asyncio.to_thread(wait_until, lambda: role(old) == "slave", "a new master", 20.0)
        await running.fleet.steps(5)
        await running.settled([new])
        await running.finds_all()


async def test_r9_a_server_that_was_a_replica_for_a_while_is_filled_again() -> None:
    """It has the same process and another's data: its history tells, and memory fills it."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        one = Server(Path(folder) / "one", plain_options())
        empty = Server(Path(folder) / "empty", plain_options())
        with run_servers([one, empty]):
            async with indexed_fleet({"url": one.url}, lambda: [one], 1, seed=4) as running:
                with one.client() as client:
                    client.replicaof("127.0.0.1", empty.port)
                    await asyncio.to_thread(wait_until, lambda: client.dbsize() == 0, "empty")
                    while not running.errors("readonly"):
                        await running.fleet.steps(3)
                    client.replicaof("NO", "ONE")
                await running.settled()
                await running.finds_all()


async def test_r9_replicas_answer_lookups(watched: Watched) -> None:
    """With read_from_replicas the scripts of lookups run on the replica alone."""
    async with started(watched, seed=3, read_from_replicas=True) as running:
        master = watched.master()
        before = scripts_run(watched.servers)
        for engine in running.fleet.engines:
            await running.index.match(running.fleet.all_shards(), engine.longest())
        ran = {port: count - before[port] for port, count in scripts_run(watched.servers).items()}
        assert sum(count for port, count in ran.items() if port != master.port) == 2 * 4


def role(server: Server) -> str:
    """Ask a server what it is."""
    with server.client() as client:
        return str(client.info("replication")["role"])


def scripts_run(servers: list[Server]) -> dict[int, int]:
    """Count the calls of scripts by server."""
    counts = {}
    for server in servers:
        with server.client() as client:
            stats = client.info("commandstats")
        calls = [stats[name]["calls"] for name in stats if name.startswith("cmdstat_evalsha")]
        counts[server.port] = sum(map(int, calls))
    return counts

"""E16, an indexer is killed at any moment: its successor knows exactly what it knew.

The engines have sent more than they can replay, so a successor that had only them to ask would
have to forget; that the epochs stay the same shows that it did not.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Report
from tests.fakes.chaos_place import Scale, own_redis
from tests.fakes.fault_proxy import fault_proxy
from tests.fakes.indexer_process import indexer_processes
from tests.fakes.many_indexers import REPLAY_BATCHES, Fleet, busy_fleet
from tests.fakes.redis_servers import Server

LEASE_S = 0.5
KILLS = {False: 6, True: 100}
WARM_S = 40.0


async def replicated(master: Server, replica: Server) -> None:
    """Let one follow the other, until it has all of it."""
    with replica.client() as client:
        client.replicaof("127.0.0.1", str(master.port))
        for _ in range(400):
            if client.info("replication").get("master_link_status") == "up":
                return
            await asyncio.sleep(0.05)
    raise AssertionError(replica.address)


async def aged(fleet: Fleet, owners: int) -> None:
    """Let the engines live longer than their replays reach, with everything indexed."""
    await fleet.owned(owners)
    await fleet.age(1)
    await fleet.right(WARM_S)
    await fleet.age(REPLAY_BATCHES + 500)
    await fleet.right(WARM_S)


@pytest.mark.timeout(120)
async def test_e16_the_successor_of_a_killed_owner_is_exact(scale: Scale) -> None:
    """Killed with -9 under load, at random moments; the index is right, in the same epochs."""
    source, recovered = random.Random(16), []
    with own_redis() as redis, tempfile.TemporaryDirectory(prefix="kva-") as folder:
        async with busy_fleet(redis, 2, 16) as fleet:
            settings = fleet.blocks.settings({"url": redis.url})
            with indexer_processes(Path(folder), settings, 3, lease_s=LEASE_S) as indexers:
                await aged(fleet, 2)
                epochs = fleet.epochs()
                for number in range(KILLS[scale.is_full]):
                    await asyncio.sleep(source.uniform(0.0, 0.3))
                    victim = indexers[number % len(indexers)]
                    victim.kill()
                    began = time.monotonic()
                    victim.start()
                    await asyncio.sleep(source.uniform(0.0, 0.8))
                    await fleet.right()
                    assert fleet.epochs() == epochs, fleet.states()
                    recovered.append(time.monotonic() - began)
    Report(
        "E16",
        f"kill -9 of {len(recovered)} indexers in turn, at random moments under load",
        "a successor goes on in the same epoch, and the index is the engines' caches each time",
        recovered,
    ).tell()


@pytest.mark.timeout(90)
async def test_e16_a_successor_after_a_failover_that_lost_writes_is_exact() -> None:
    """The promoted replica has an older position and older pages; the engine has the rest."""
    with (
        own_redis() as master,
        own_redis() as replica,
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
    ):
        async with (
            busy_fleet(master, 2, 17) as fleet,
            fault_proxy("127.0.0.1", master.port) as proxy,
        ):
            settings = fleet.blocks.settings({"url": f"redis://{proxy.address}/0"})
            with indexer_processes(Path(folder), settings, 1, lease_s=LEASE_S) as (indexer,):
                await aged(fleet, 1)
                epochs = fleet.epochs()
                await replicated(master, replica)
                await asyncio.sleep(0.5)
                with replica.client() as client:
                    client.replicaof("NO", "ONE")
                await asyncio.sleep(1.0)  # all of this is lost
                indexer.kill()
                proxy.target = ("127.0.0.1", replica.port)
                proxy.cut()
                fleet.redis = replica
                indexer.start()
                await fleet.right()
                assert fleet.epochs() == epochs

"""Run engines, indexers and a Redis for minutes, break one after the other, and see what is left.

    python -m tests.soak.run [--minutes M] [--indexers N] [--engines N] [--json FILE]

A cycle of a minute: an engine restarts (E3), Redis freezes for some seconds (R1), engines break
streams off (U5), an indexer is killed with -9 and started again, Redis is killed with -9 and comes
back empty, all under events at 15 % of what was measured first, and under chats that keep a router
at 70 % of its core. At its end the events pause, and Redis must hold exactly what the engines hold.
Memory, connections, files and threads are read at the same point of every cycle; their slopes must
be flat, and only streams that engines broke off may fail.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName
from kvatlas.router.lookup import BlockIndex
from tests.fakes.block_fleet import BlockFleet
from tests.fakes.indexer_process import IndexerProcess, indexer_processes
from tests.fakes.redis_servers import Server, plain_options
from tests.fakes.redis_servers import running as run_servers
from tests.soak.engines import CHAIN_BLOCKS, Load, TurningEngine, turning_fleet
from tests.soak.report import report
from tests.soak.traffic import Traffic, answering_engines, traffic

CYCLE_S = 60.0
SHARE_OF_CAPACITY = 0.15
"""With a router at its share and its clients, two cores are full."""
CAPACITY_CHAINS = 4_000
SETTLE_S = 15.0
LOOKUP_PAUSE_S = 0.02
FROZEN_S = 3.0
CUT_S = 2.0


@dataclass(frozen=True)
class Sample:
    """What a cycle leaves behind.

    Attributes:
        settled_s: from the last event until Redis held what the engines held.
        indexer_mb: resident memory of all indexers.
        indexer_files: their open files and sockets.
        indexer_threads: their threads.
        redis_mb: used_memory.
        redis_connections: connected clients.
        redis_keys: keys.
        router_mb: resident memory of the router.
        router_files: its open files and sockets.
        router_threads: its threads.
    """

    settled_s: float
    indexer_mb: float
    indexer_files: int
    indexer_threads: int
    redis_mb: float
    redis_connections: int
    redis_keys: int
    router_mb: float
    router_files: int
    router_threads: int


@dataclass
class Place:
    """Everything that runs."""

    fleet: BlockFleet
    redis: Server
    indexers: list[IndexerProcess]
    index: BlockIndex
    traffic: Traffic
    source: random.Random
    lookups: int = 0
    failed_lookups: int = 0
    tracebacks: int = 0
    samples: list[Sample] = field(default_factory=list)

    async def look_up(self) -> None:
        """Look chains up for ever, as a router does."""
        while True:
            engine = self.source.choice(self.fleet.engines)
            if engine.prompts:
                try:
                    await self.index.match(self.fleet.all_shards(), engine.longest())
                    self.lookups += 1
                except IndexUnavailable:
                    self.failed_lookups += 1
            await asyncio.sleep(LOOKUP_PAUSE_S)

    async def caught_up(self) -> float:
        """Wait until the last batch of each engine is in Redis; give the seconds."""
        began = time.monotonic()
        last = {
            self.fleet.shard_of(engine).endpoint(engine.name): engine.publisher.next_seq - 1
            for engine in self.fleet.engines
        }
        with self.redis.client() as client:
            while behind := {
                key: (seq, client.hmget(key, "seq", "phase", "reason"))
                for key, seq in last.items()
                if client.hget(key, "seq") != b"%d" % seq
            }:
                assert time.monotonic() - began < SETTLE_S, behind
                await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def settled(self) -> float:
        """Wait until all is in Redis, compare it with what the engines hold; give the seconds."""
        caught_up_s = await self.caught_up()
        with self.redis.client() as client:
            await self.fleet.settled([client], SETTLE_S)
        return caught_up_s

    async def sample(self) -> None:
        """Wait until all is settled, and read what it costs."""
        settled_s = await self.settled()
        with self.redis.client() as client:
            memory, clients = client.info("memory"), client.info("clients")
            keys = client.dbsize()
        processes = [Path(f"/proc/{indexer.pid}") for indexer in self.indexers]
        router_home = Path(f"/proc/{self.traffic.router.pid}")
        router = dict(_fields(router_home / "status"))
        status = [dict(_fields(process / "status")) for process in processes]
        self.samples.append(
            Sample(
                settled_s=settled_s,
                indexer_mb=sum(int(one["VmRSS"].split()[0]) for one in status) / 1_024,
                indexer_files=sum(len(list((process / "fd").iterdir())) for process in processes),
                indexer_threads=sum(int(one["Threads"]) for one in status),
                redis_mb=memory["used_memory"] / 2**20,
                redis_connections=clients["connected_clients"],
                redis_keys=int(keys),
                router_mb=int(router["VmRSS"].split()[0]) / 1_024,
                router_files=len(list((router_home / "fd").iterdir())),
                router_threads=int(router["Threads"]),
            )
        )

    async def restart_engine(self) -> None:
        """Let an engine die and come back empty."""
        engine = self.source.choice(self.fleet.engines)
        assert isinstance(engine, TurningEngine)
        await engine.restart()

    async def kill_indexer(self) -> None:
        """Kill an indexer and start it again; the others live on, so that leaks show in them."""
        indexer = self.indexers[-1]
        indexer.kill()
        indexer.start()

    async def freeze_redis(self) -> None:
        """Let Redis stand still for a while (R1)."""
        os.kill(self.redis.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            os.kill(self.redis.pid, signal.SIGCONT)

    async def cut_streams(self) -> None:
        """Let engines break their streams off (U5)."""
        await self.traffic.cut_streams(CUT_S)

    async def kill_redis(self) -> None:
        """Kill Redis; it comes back empty."""
        self.redis.kill()
        await asyncio.to_thread(self.redis.start)


def main() -> int:
    """Run the soak; 0 when the index was right after each cycle and nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--indexers", type=int, default=2)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    return asyncio.run(_soak(options))


async def _soak(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="kva-soak-") as folder, ExitStack() as stack:
        home = Path(folder)
        redis = Server(home / "redis", plain_options())
        stack.enter_context(run_servers([redis]))
        async with AsyncExitStack() as stack_async:
            answering = await stack_async.enter_async_context(answering_engines(options.engines))
            names = [EndpointName(f"127.0.0.1:{engine.port}") for engine in answering.engines]
            fleet = await stack_async.enter_async_context(turning_fleet(names, options.seed))
            settings = fleet.settings({"url": redis.url})
            indexers = stack.enter_context(indexer_processes(home, settings, options.indexers))
            index = BlockIndex.connect(redis.url)
            stack_async.push_async_callback(index.aclose)
            chats = await stack_async.enter_async_context(
                traffic(home, redis.url, answering, options.seed)
            )
            place = Place(fleet, redis, indexers, index, chats, random.Random(options.seed))
            rate = await _run(place, options.minutes)
    return report(place, rate, options.json)


async def _run(place: Place, minutes: float) -> float:
    """Measure what can be applied, and run the cycles at a share of it, which is given back."""
    looking = asyncio.create_task(place.look_up())
    try:
        capacity = await _capacity(place)
        rate = SHARE_OF_CAPACITY * capacity
        print(f"{capacity:,.0f} blocks/s applied at most, {rate:,.0f} in the soak", flush=True)
        await _cycles(place, rate, max(1, round(minutes * 60 / CYCLE_S)))
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    place.tracebacks = place.traffic.tracebacks()
    return rate


async def _capacity(place: Place) -> float:
    """Measure how many blocks per second go from engines into Redis, engines' own work included."""
    engines = [engine for engine in place.fleet.engines if isinstance(engine, TurningEngine)]
    for engine in engines:
        await engine.step()
    await place.settled()
    began = time.monotonic()
    for number in range(CAPACITY_CHAINS):
        await engines[number % len(engines)].step()
        if number % 64 == 0:
            await asyncio.sleep(0)
    await place.caught_up()
    return CAPACITY_CHAINS * CHAIN_BLOCKS / (time.monotonic() - began)


async def _cycles(place: Place, rate: float, count: int) -> None:
    """Break one thing after the other under load."""
    engines = [engine for engine in place.fleet.engines if isinstance(engine, TurningEngine)]
    load = Load(engines, rate)
    faults = (
        place.restart_engine, place.freeze_redis, place.cut_streams, place.kill_indexer,
        place.kill_redis,
    )  # fmt: skip
    for number in range(count):
        for fault in faults:
            await load.run(CYCLE_S / (len(faults) + 1))
            await fault()
        await load.run(CYCLE_S / (len(faults) + 1))
        await place.sample()
        print(f"cycle {number + 1}: {place.samples[-1]}", flush=True)
        print(f"  {place.traffic.told()}", flush=True)


def _fields(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


if __name__ == "__main__":
    sys.exit(main())

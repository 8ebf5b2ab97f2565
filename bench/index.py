"""The index: what a lookup takes, what a batch takes, what a block costs. Prints a table.

Run it with `python bench/index.py [--blocks N] [--json FILE]`. Redis, writer and reader share the
machine. The baseline reads every block of the prompt (HKEYS of a HASH per block whose fields are
holders as JSON), as a router that keeps its index in Redis naively does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from kvatlas.cli.redis_server import running_redis
from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName, HolderId, ModelName, Pool
from kvatlas.common.keyspace import Holder, Shard
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.decode import decode
from kvatlas.indexer.store import BEFORE_FIRST, Change, IndexStore, Position, Progress, Target
from kvatlas.router.lookup import BlockIndex

SHARD = Shard(ModelName("bench"), 0)
ENDPOINTS = 64
LENGTHS = (64, 640, 6_400)
ROUNDS = 200
BLOCK_SIZE = 16


class Filler:
    """Write blocks under 64 endpoints."""

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._at: dict[int, tuple[Target, Position, HolderId]] = {}

    async def open(self) -> None:
        """Open an epoch and a pool per endpoint."""
        for number in range(ENDPOINTS):
            target = Target(EndpointName(f"10.0.0.{number}:8000"), SHARD)
            epoch = await self._store.open_epoch(target, None, "start", 0.0)
            holder = Holder(target.name, epoch, Pool("gpu", 0), "full_attention")
            number_of = await self._store.open_pool(SHARD, holder, {})
            self._at[number] = (target, Position(epoch, BEFORE_FIRST), number_of)

    async def hold_windows(self, number: int, blocks: list[BlockHash]) -> None:
        """Let an endpoint hold blocks in a group with a window of 1,024 tokens."""
        target, at, _ = self._at[number]
        window = Holder(target.name, at.epoch, Pool("gpu", 1), "sliding_window", 1_024, BLOCK_SIZE)
        holder = await self._store.open_pool(SHARD, window, {})
        changes = [Change(block, holder, present=True, windowed=True) for block in blocks]
        await self._store.apply(target, at, Progress(at.seq + 1, 0.0), changes)
        self._at[number] = (target, Position(at.epoch, at.seq + 1), self._at[number][2])

    async def hold(self, number: int, blocks: list[BlockHash]) -> None:
        """Let an endpoint hold blocks."""
        target, at, holder = self._at[number]
        for start in range(0, len(blocks), limits.OPS_PER_SCRIPT_MAX):
            part = blocks[start : start + limits.OPS_PER_SCRIPT_MAX]
            changes = [Change(block, holder, present=True) for block in part]
            await self._store.apply(target, at, Progress(at.seq + 1, 0.0), changes)
            at = Position(at.epoch, at.seq + 1)
        self._at[number] = (target, at, holder)


async def lookup_ms(index: BlockIndex, chain: list[BlockHash]) -> float:
    """Give the median of many lookups, one at a time."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        await index.match([SHARD], chain)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


async def naive_ms(client: Redis, chain: list[BlockHash]) -> float:
    """Give the same for the baseline."""
    names = [f"naive:{block}" for block in chain]
    async with client.pipeline(transaction=False) as pipe:
        for position, name in enumerate(names):
            for number in range(1 if position > len(names) // 2 else 3):
                pipe.hset(name, json.dumps({"PodIdentifier": number, "DeviceTier": "gpu"}), "")
        await pipe.execute()
    times = []
    for _ in range(max(5, ROUNDS // 10)):
        begun = time.perf_counter()
        async with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hkeys(name)
            await pipe.execute()
        times.append(time.perf_counter() - begun)
    await client.delete(*names)
    return statistics.median(times) * 1e3


async def hybrid_ms(url: str, filler: Filler, length: int) -> dict[str, float]:
    """Give the median of lookups with 8 hybrid endpoints: window at the end, and nowhere."""
    source, index = random.Random(3), BlockIndex.connect(url)
    chain = [BlockHash(source.getrandbits(64)) for _ in range(length)]
    for number in range(8):
        await filler.hold(number, chain)
        await filler.hold_windows(number, chain[-64:])
    await index.match([SHARD], chain)
    found = {
        "window at the end": await lookup_ms(index, chain),
        "window nowhere": await lookup_ms(index, chain[:-65]),
    }
    await index.aclose()
    return found


def event_payloads(events: int, blocks: int) -> list[bytes]:
    """Write batches of one stored event each."""
    source = random.Random(2)
    payloads = []
    for number in range(events):
        event = {
            "type": "BlockStored",
            "block_hashes": [source.getrandbits(64) for _ in range(blocks)],
            "parent_block_hash": None,
            "token_ids": [source.randrange(150_000) for _ in range(blocks * BLOCK_SIZE)],
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
        payloads.append(msgpack.packb([float(number), [event], 0]))
    return payloads


async def apply_rate(filler: Filler, events: int, blocks: int) -> float:
    """Give blocks per second from payload to Redis, one endpoint, calls one after the other."""
    payloads = event_payloads(events, blocks)
    cache = EndpointCache(ModelName("bench"))
    begun = time.perf_counter()
    waiting: list[BlockHash] = []
    for payload in payloads:
        waiting += [block for _, block in cache.apply(decode(payload)).present]
        if len(waiting) >= limits.OPS_PER_SCRIPT_MAX // 2:
            await filler.hold(0, waiting)
            waiting = []
    await filler.hold(0, waiting)
    return events * blocks / (time.perf_counter() - begun)


async def measure(url: str, blocks: int) -> dict[str, Any]:
    """Run everything on an empty Redis."""
    store, index = IndexStore.connect(url), BlockIndex.connect(url)
    client = Redis.from_url(url)
    source = random.Random(1)
    filler = Filler(store)
    await filler.open()
    before = (await client.info("memory"))["used_memory"]
    for number in range(ENDPOINTS):
        await filler.hold(
            number, [BlockHash(source.getrandbits(64)) for _ in range(blocks // ENDPOINTS)]
        )
    used = (await client.info("memory"))["used_memory"] - before
    figures: dict[str, Any] = {"blocks": blocks, "bytes_per_pair": used / blocks, "lookup": {}}
    for length in LENGTHS:
        chain = [BlockHash(source.getrandbits(64)) for _ in range(length)]
        for number in range(ENDPOINTS):
            await filler.hold(number, chain[: length // 8 if number > 2 else length - 7 * number])
        await index.match([SHARD], chain)
        figures["lookup"][length] = {
            "kvatlas_ms": await lookup_ms(index, chain),
            "every_block_ms": await naive_ms(client, chain),
        }
    figures["stores_32_blocks_per_s"] = await apply_rate(filler, 4_000, 32)
    figures["stores_1_block_per_s"] = await apply_rate(filler, 20_000, 1)
    figures["hybrid"] = await hybrid_ms(url, filler, 640)
    await asyncio.gather(store.aclose(), index.aclose(), client.aclose())
    return figures


def report(figures: dict[str, Any]) -> Table:
    """Write the table."""
    table = Table(title=f"{figures['blocks']:,} blocks over {ENDPOINTS} endpoints")
    for name in ("what", "kvatlas", "every block read", "ratio"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for length, each in figures["lookup"].items():
        ours, naive = each["kvatlas_ms"], each["every_block_ms"]
        table.add_row(
            f"lookup of {length:,} blocks, p50 in ms",
            f"{ours:.2f}",
            f"{naive:.2f}",
            f"{naive / ours:.0f}",
        )
    for where, ours in figures["hybrid"].items():
        table.add_row(f"the same of 640, 8 hybrid endpoints, {where}", f"{ours:.2f}", "", "")
    table.add_row(
        "bytes in Redis per (block, endpoint)", f"{figures['bytes_per_pair']:.0f}", "", ""
    )
    for name in ("stores_32_blocks_per_s", "stores_1_block_per_s"):
        table.add_row(name.replace("_", " "), f"{figures[name]:,.0f}", "", "")
    return table


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=500_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
    ):
        figures = asyncio.run(measure(server.url, options.blocks))
    Console(width=100).print(report(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

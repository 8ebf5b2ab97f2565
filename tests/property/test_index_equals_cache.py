"""Whatever happens between engine and index: after it has settled, the index is the cache."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from kvatlas.cli.redis_server import RedisServer
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EndpointName, ModelName
from kvatlas.common.keyspace import Holder, Shard, parse_holder_ids
from kvatlas.common.settings import Settings
from kvatlas.simulator.block_pool import BlockPool, BlockTable
from kvatlas.simulator.cache_events import CacheEvent, Cleared, Removed, Stored
from kvatlas.simulator.engine_hash import wire_hash
from tests.fakes.publisher import CLEARED, FakePublisher, removed, stored
from tests.fakes.services import indexing

MODEL = ModelName("tiny")
NAME = EndpointName("127.0.0.1:8101")
SHARD = Shard(MODEL, 0)
SIZE = 4
BLOCKS = 24
SETTLE_S = 12.0

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.integers(0, 5), st.integers(1, 40)),
        st.tuples(st.just("request"), st.integers(0, 5), st.integers(1, 40)),
        st.tuples(st.just("lose"), st.integers(0, 5), st.integers(1, 40)),
        st.tuples(st.sampled_from(["reset", "reconnect", "restart", "flush", "twice", "pause"])),
    ),
    min_size=4,
    max_size=24,
)


@dataclass
class PlainEngine:
    """An engine without its scheduler: the block pool, and what it announces."""

    publisher: FakePublisher
    pool: BlockPool = field(default_factory=lambda: BlockPool(BLOCKS))
    names: dict[int, BlockHash] = field(default_factory=dict)

    def serve(self, prompt: int, length: int) -> None:
        """Cache a prompt: prompts with the same number share their beginning."""
        source = random.Random(prompt)
        tokens = [source.randint(0, 999) for _ in range(length)]
        table = BlockTable(self.pool, SIZE, tokens)
        matched = table.match()
        assert table.grow(length - len(matched) * SIZE, matched)
        table.free()

    def announcements(self) -> list[object]:
        """Take what is to be published, and remember which hash is which block."""
        return [self._announce(event) for event in self.pool.take_events()]

    def _announce(self, event: CacheEvent) -> object:
        if isinstance(event, Stored):
            parent = root_hash(MODEL, SIZE) if event.parent is None else self.names[event.parent]
            blocks = chain(parent, event.token_ids, SIZE)
            self.names.update(zip(event.hashes, blocks, strict=True))
            return stored(list(event.hashes), list(event.token_ids), event.parent, SIZE)
        if isinstance(event, Removed):
            return removed(event.hash)
        assert isinstance(event, Cleared)
        return CLEARED

    def blocks(self) -> set[BlockHash]:
        """List what is cached, by our hashes."""
        return {self.names[wire_hash(key)] for key in self.pool.cached()}


async def indexed(client: Any) -> set[BlockHash]:
    """Read every entry of the endpoint's current epoch, without the product's lookup."""
    holders = await client.hgetall(SHARD.holders)
    live = {
        int(key)
        for key, text in holders.items()
        if key != b"version" and Holder.from_text(text.decode()).endpoint == NAME
    }
    found = set()
    async for key in client.scan_iter(SHARD.bucket_prefix + "*"):
        for name, value in (await client.hgetall(key)).items():
            if live & set(parse_holder_ids(value)):
                found.add(BlockHash(int(key[-4:] + name, 16)))
    return found


async def play(actions: list[tuple[str | int, ...]], client: Redis, url: str) -> None:
    """Let everything happen, then wait until index and cache are equal."""
    async with FakePublisher() as publisher:
        configuration = {
            "redis": {"url": url},
            "models": [{"name": MODEL, "tokenizer": "-"}],
            "endpoints": [
                {
                    "url": f"http://{NAME}",
                    "model": MODEL,
                    "events": publisher.events,
                    "replay": publisher.replay,
                }
            ],
            "indexer": {"admin_port": 0},
        }
        async with indexing(Settings.model_validate(configuration)):
            await happen(actions, PlainEngine(publisher), client)


async def happen(actions: list[tuple[str | int, ...]], engine: PlainEngine, client: Redis) -> None:
    """Do one thing after the other, at different paces."""
    for name, *arguments in actions:
        if name in ("request", "lose"):
            engine.serve(*map(int, arguments))
            seq = engine.publisher.record(*engine.announcements())
            if name == "request":
                await engine.publisher.resend(seq)
        else:
            await disturb(str(name), engine, client)
    engine.serve(9, 9)
    await engine.publisher.publish(*engine.announcements())
    await settled(engine, client)


async def disturb(name: str, engine: PlainEngine, client: Redis) -> None:
    """Do what is not an ordinary request."""
    publisher = engine.publisher
    match name:
        case "reset":
            engine.pool.reset()
        case "reconnect":
            publisher.close()
            await publisher.open()
        case "restart":
            await publisher.restart()
            engine.pool = BlockPool(BLOCKS)
        case "flush":
            await client.flushall()
        case "twice" if publisher.next_seq:
            await publisher.resend(publisher.next_seq - 1)
        case _:
            await asyncio.sleep(0.05)


async def settled(engine: PlainEngine, client: Redis) -> None:
    """Wait until the index is the cache."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    while (found := await indexed(client)) != engine.blocks():
        assert asyncio.get_running_loop().time() < deadline, (
            f"{len(found - engine.blocks())} too many, {len(engine.blocks() - found)} missing"
        )
        await asyncio.sleep(0.05)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ACTIONS)
@pytest.mark.timeout(120)
def test_the_index_equals_the_cache(
    redis_server: RedisServer, actions: list[tuple[str | int, ...]]
) -> None:
    """Evictions, losses, resets, reconnects, restarts, copies and an empty Redis in any order."""

    async def run() -> None:
        async with Redis.from_url(redis_server.url) as client:
            await client.flushall()
            await play(actions, client, redis_server.url)

    asyncio.run(run())

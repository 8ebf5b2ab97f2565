"""A full Redis (OOM): what an engine no longer holds leaves the index all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import BlockHash
from kvatlas.indexer.apply import Delta, EndpointCache
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.targets import Opening, Position, Progress
from tests.fakes.index_writer import GPU, MODEL, SHARD, Writer, chain_of, named

CHAIN = chain_of(6)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Give a client of a Redis that is roomy again afterwards."""
    async with Redis.from_url(redis_url) as client:
        yield client
        await make_room(client)


async def fill_up(client: Redis) -> None:
    """Leave no room for anything."""
    await client.config_set("maxmemory", 1)


async def make_room(client: Redis) -> None:
    """Lift the limit."""
    await client.config_set("maxmemory", 0)


async def held(client: Redis, block: BlockHash) -> bytes | None:
    """Read who holds a block."""
    key, field = SHARD.entry(block)
    found = await client.hget(key, field)
    return found.encode() if isinstance(found, str) else found


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    for _ in range(500):
        if await check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(check)


async def test_removals_apply_and_stores_are_refused(writer: Writer, redis: Redis) -> None:
    """Also where the block has other holders, and so a shorter value has to be set."""
    await writer.set(named(1), CHAIN[:3])
    await writer.set(named(2), CHAIN[:3])
    await fill_up(redis)
    with pytest.raises(IndexUnavailable, match="oom"):
        await writer.set(named(1), CHAIN[3:4])
    assert await writer.set(named(1), CHAIN[1:3], present=False) == 2
    assert [await held(redis, block) for block in CHAIN[:4]] == [b"1 2", b"2", b"2", None]
    # A sequence that moves alone, and a new epoch, which forgets everything.
    assert await writer.set(named(1), [], present=False) == 0
    epoch = await writer.store.open_epoch(writer.target(named(1)), None, Opening("cleared", 2.0))
    assert await writer.store.position(writer.target(named(1))) == Position(epoch, -1)


async def test_removals_do_not_wait_for_stores(writer: Writer, redis: Redis) -> None:
    """Of a batch with both the removals are written, the stores as soon as there is room."""
    target = await writer.claim(named(1))
    mirror = Mirror(target, EndpointCache(MODEL), writer.store, IndexerMetrics())
    mirror.forget("start")
    mirror.update(Progress(0, 1.0), Delta(present={GPU: dict.fromkeys(CHAIN[:3], True)}), 0)

    async def is_current() -> bool:
        return mirror.is_current

    async def is_gone() -> bool:
        return await held(redis, CHAIN[2]) is None and mirror.failing == "oom"

    writing = asyncio.create_task(mirror.run())
    await eventually(is_current)
    await fill_up(redis)
    mirror.update(Progress(1, 2.0), Delta(present={GPU: {CHAIN[3]: True, CHAIN[2]: False}}), 0)
    await eventually(is_gone)
    assert await held(redis, CHAIN[3]) is None
    await make_room(redis)
    await eventually(is_current)
    assert [await held(redis, block) for block in CHAIN[:4]] == [b"1", b"1", None, b"1"]
    assert mirror.epoch == 1
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)

"""Looking chains up in a real Redis: what the script finds is what a full scan finds."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from kvatlas.cli.redis_server import running_redis
from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, IndexUnavailable, WrongEpoch
from kvatlas.common.ids import BlockHash, Epoch, HolderId, Pool
from kvatlas.common.keyspace import SCHEMA_KEY, Holder, shards_of
from kvatlas.common.kv_groups import Tier
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.sweep import sweep_once
from kvatlas.indexer.targets import Change, Dead, Opening, Position, Progress
from kvatlas.router.lookup import BlockIndex
from kvatlas.router.thinning import stride_of
from tests.fakes.index_writer import GPU, MODEL, SHARD, Writer, chain_of, matched, named

pytestmark = pytest.mark.usefixtures("patient")


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 640])
async def test_nested_sets_match_exactly(writer: Writer, index: BlockIndex, length: int) -> None:
    """Whatever the lengths of the endpoints' prefixes, each is found to the block."""
    chain = chain_of(length)
    source = random.Random(length)
    depths = {named(i): source.randint(0, length) for i in range(12)}
    for name, depth in depths.items():
        await writer.set(name, chain[:depth])
    assert await matched(index, [SHARD], chain) == {n: d for n, d in depths.items() if d}


@pytest.mark.parametrize("length", [1_024, 1_025, 2_999])
async def test_long_chains_match_exactly(writer: Writer, index: BlockIndex, length: int) -> None:
    """Those that are read in two steps, too, wherever the ends lie between what is asked first."""
    chain = chain_of(length)
    depths = {named(i): depth for i, depth in enumerate((1, 2, 7, 8, 500, length - 1, length))}
    for name, depth in depths.items():
        for start in range(0, depth, 800):
            await writer.set(name, chain[start : min(depth, start + 800)])
    assert await matched(index, [SHARD], chain) == depths
    assert await matched(index, [SHARD], chain[:-2]) == {
        name: min(depth, length - 2) for name, depth in depths.items()
    }


async def test_holders_that_change_between_two_steps(
    writer: Writer, index: BlockIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lost its epoch is no match any more, others may fall short by less than a stride."""
    chain = chain_of(1_500)
    for number, depth in ((1, 700), (2, 1_000), (3, 500)):
        for start in range(0, depth, 500):
            await writer.set(named(number), chain[start : min(depth, start + 500)])
    asks = index._runs

    async def asks_and_changes(*asked: Any) -> Any:
        answer = await asks(*asked)
        if asked[1] == [packed_thinned]:
            await writer.open(named(1))
        return answer

    stride = stride_of(len(chain))
    packed_thinned = b"".join(block.to_bytes(8, "big") for block in chain[::stride])
    monkeypatch.setattr(index, "_runs", asks_and_changes)
    found = await matched(index, [SHARD], chain)
    assert found.keys() == {named(2), named(3)}
    for number, depth in ((2, 1_000), (3, 500)):
        assert depth - stride < found[named(number)] <= depth
    monkeypatch.undo()
    assert await matched(index, [SHARD], chain) == {named(2): 1_000, named(3): 500}


async def test_a_lookup_reads_few_blocks(writer: Writer, index: BlockIndex, redis_url: str) -> None:
    """A long chain held by few endpoints costs a few dozen reads."""
    chain = chain_of(6_400)
    for start in range(0, 6_400, 800):
        await writer.set(named(1), chain[start : start + 800])
    await writer.set(named(2), chain[:777])
    async with Redis.from_url(redis_url) as client:
        await client.config_resetstat()
        assert await matched(index, [SHARD], chain) == {named(1): 6_400, named(2): 777}
        reads = (await client.info("commandstats"))["cmdstat_hget"]["calls"]
    assert reads < 80


async def test_the_first_missing_block_ends_a_match(writer: Writer, index: BlockIndex) -> None:
    """Blocks behind a missing first one do not count."""
    chain = chain_of(8)
    await writer.set(named(1), chain[1:])
    assert await matched(index, [SHARD], chain) == {}
    assert await matched(index, [SHARD], []) == {}


async def test_late_joiners_are_no_match(writer: Writer, index: BlockIndex) -> None:
    """An endpoint that holds only a middle part is not in the match of the others."""
    chain = chain_of(20)
    await writer.set(named(1), chain)
    await writer.set(named(2), chain[5:10])
    assert await matched(index, [SHARD], chain) == {named(1): 20}


async def test_removed_blocks_shorten_the_match(writer: Writer, index: BlockIndex) -> None:
    """And removing what is not there changes nothing."""
    chain = chain_of(10)
    await writer.set(named(1), chain)
    await writer.set(named(2), chain)
    assert await writer.set(named(1), chain[7:], present=False) == 3
    assert await writer.set(named(1), chain[7:], present=False) == 0
    assert await matched(index, [SHARD], chain) == {named(1): 7, named(2): 10}


async def test_an_epoch_is_forgotten_in_one_write(writer: Writer, index: BlockIndex) -> None:
    """Readers that knew the old holders stop believing in them at once."""
    chain = chain_of(10)
    await writer.set(named(1), chain)
    await writer.set(named(2), chain[:4])
    assert await matched(index, [SHARD], chain) == {named(1): 10, named(2): 4}
    await writer.open(named(1))
    assert await matched(index, [SHARD], chain) == {named(2): 4}
    await writer.set(named(1), chain[:2])
    assert await matched(index, [SHARD], chain) == {named(1): 2, named(2): 4}


async def test_swept_holders_are_reused_without_a_trace(writer: Writer, index: BlockIndex) -> None:
    """After a sweep the id of a past epoch may stand for another endpoint."""
    chain = chain_of(10)
    await writer.set(named(1), chain)
    await writer.open(named(1))
    dead = await writer.store.dead_holders(SHARD)
    assert set(dead.texts) == {"1"}
    assert not dead.has_windowed
    await writer.set(named(2), chain[:1])
    await sweep_once(writer.store, SHARD, dead, IndexerMetrics())
    assert await writer.store.dead_holders(SHARD) == Dead({})
    await writer.set(named(3), chain[:2])
    assert await matched(index, [SHARD], chain) == {named(2): 1, named(3): 2}


async def test_a_sweep_goes_in_small_steps(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops in the middle of its buckets where much is in them, and goes on from there."""
    blocks = [BlockHash((bucket << 48) + number) for bucket in (3, 5, 70) for number in range(9)]
    await writer.set(named(1), blocks)
    await writer.open(named(1))
    dead = await writer.store.dead_holders(SHARD)
    assert await writer.store.sweep(SHARD, dead, 0) == (limits.SWEEP_BUCKETS_PER_CALL, 18)
    await writer.set(named(1), blocks)
    await writer.open(named(1))
    dead = await writer.store.dead_holders(SHARD)
    monkeypatch.setattr(limits, "SWEEP_BYTES_PER_CALL", 9)
    assert await writer.store.sweep(SHARD, dead, 0) == (4, 9)
    assert await writer.store.sweep(SHARD, dead, 4) == (6, 9)
    monkeypatch.setattr(limits, "SWEEP_HOLDERS_MAX", 1)
    assert set((await writer.store.dead_holders(SHARD)).texts) < {"1", "2"}


async def test_an_id_that_died_again_during_a_sweep_is_kept(
    writer: Writer, index: BlockIndex, redis_url: str
) -> None:
    """Redis lost its data on the way: the id stands for another holder, whose entries remain."""
    chain = chain_of(10)
    await writer.set(named(1), chain)
    await writer.open(named(1))
    dead = await writer.store.dead_holders(SHARD)
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
    await writer.open(named(1))
    await writer.set(named(1), chain)
    await writer.open(named(1))
    await writer.store.release(SHARD, dead)
    again = await writer.store.dead_holders(SHARD)
    assert set(again.texts) == set(dead.texts) == {"1"}
    await writer.set(named(2), chain[:1])
    assert await matched(index, [SHARD], chain) == {named(2): 1}


async def test_kinds_that_are_not_known_are_no_match(writer: Writer, index: BlockIndex) -> None:
    """Nor is anything else of their endpoints; a second medium adds to the first."""
    chain = chain_of(10)
    await writer.set(named(1), chain)
    await writer.set(named(1), chain, kind="hi_sparse", pool=Pool("gpu", 1))
    await writer.set(named(2), chain[:4])
    await writer.set(named(2), chain[4:6], pool=Pool("cpu", 0))
    assert await matched(index, [SHARD], chain) == {named(2): 6}


async def test_blocks_count_by_where_they_live(writer: Writer, redis_url: str) -> None:
    """The match is what it is; its weight is that of the best tier of each block."""
    chain = chain_of(10)
    await writer.set(named(1), chain[:3])
    await writer.set(named(1), chain[:6], pool=Pool("cpu", 0))
    await writer.set(named(1), chain[6:7], pool=Pool("cpu", 0, is_remote=True))
    await writer.set(named(2), chain[:4])
    weights: dict[Tier, float] = {"gpu": 1.0, "cpu": 0.5, "disk": 0.4, "remote": 0.25}
    index = BlockIndex.connect(redis_url, {MODEL: weights})
    found = await index.match([SHARD], chain)
    scores = {name: (match.blocks, match.weighted_blocks) for name, match in found.items()}
    assert scores == {named(1): (7, 3 + 1.5 + 0.25), named(2): (4, 4.0)}
    await index.aclose()
    index = BlockIndex.connect(redis_url)
    assert (await index.match([SHARD], chain))[named(1)].weighted_blocks == 3 + 3 * 0.8 + 0.5
    await index.aclose()


async def test_shards_are_asked_at_once_and_merged(redis_url: str, index: BlockIndex) -> None:
    """Endpoints of one model may live in different slots."""
    writer = Writer(redis_url, shards=3)
    chain = chain_of(9)
    for number in range(1, 10):
        await writer.set(named(number), chain[:number])
    shards = shards_of(MODEL, 3)
    assert len({writer.target(named(number)).shard for number in range(1, 10)}) == 3
    assert await matched(index, shards, chain) == {named(i): i for i in range(1, 10)}
    await writer.store.aclose()


async def test_a_write_that_starts_elsewhere_is_refused(writer: Writer, index: BlockIndex) -> None:
    """Another epoch or sequence than the writer believed: nothing is written."""
    chain = chain_of(4)
    await writer.set(named(1), chain[:1])
    at, target = writer.positions[named(1)], writer.target(named(1))
    wrongly = Change(HolderId(1), [chain[1]], present=True)
    for wrong in (Position(at.epoch, at.seq - 1), Position(Epoch(at.epoch + 1), at.seq)):
        with pytest.raises(WrongEpoch):
            await writer.store.apply(target, wrong, Progress(9, 1.0), [wrongly])
    with pytest.raises(WrongEpoch):
        await writer.store.open_epoch(target, Epoch(at.epoch + 1), Opening("start", 1.0))
    holder = Holder(named(1), Epoch(at.epoch + 1), GPU, "full_attention")
    with pytest.raises(WrongEpoch):
        await writer.store.open_pool(target, holder, {})
    assert await matched(index, [SHARD], chain) == {named(1): 1}
    assert await writer.store.position(target) == at


async def test_a_part_that_was_lost_is_missed(writer: Writer, redis_url: str) -> None:
    """Parts that do not move the sequence are counted: a failover may lose one of them."""
    chain = chain_of(4)
    await writer.set(named(1), chain[:1])
    at, target = writer.positions[named(1)], writer.target(named(1))
    same, holder = Progress(at.seq, 2.0), HolderId(1)
    await writer.store.apply(target, at, same, [Change(holder, [chain[1]], present=True)])
    assert await writer.store.position(target) == Position(at.epoch, at.seq, 1)
    async with Redis.from_url(redis_url) as client:
        before_the_loss = await client.dump(target.key)
        assert before_the_loss is not None
        two = at.after(same)
        await writer.store.apply(target, two, same, [Change(holder, [chain[2]], present=True)])
        await client.restore(target.key, 0, before_the_loss, replace=True)
    three = two.after(same)
    with pytest.raises(WrongEpoch):
        await writer.store.apply(target, three, Progress(9, 3.0), [])
    assert await writer.store.position(target) == two
    assert three.after(Progress(9, 3.0)) == Position(at.epoch, 9, 0)


async def test_what_is_in_redis_can_be_read_by_people(writer: Writer, redis_url: str) -> None:
    """Keys and values are text: names, epochs, ids."""
    await writer.set(named(1), [BlockHash(0x3FA291BC00AA17DE)])
    await writer.set(named(2), [BlockHash(0x3FA291BC00AA17DE)])
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        assert await client.hget("kvatlas:{m/0}:b:3fa2", "91bc00aa17de") == "1 2"
        text = "endpoint=10.0.0.2:8000 epoch=1 medium=gpu group=0 kind=full_attention"
        assert await client.hget("kvatlas:{m/0}:holders", "2") == text
        state = await client.hgetall("kvatlas:{m/0}:endpoint:10.0.0.2:8000")
        assert await client.smembers("kvatlas:{m/0}:endpoints") == {named(1), named(2)}
    assert (state["epoch"], state["seq"], state["blocks"]) == ("1", "0", "1")


async def test_holders_stay_in_order(writer: Writer, redis_url: str) -> None:
    """However they come and go, equal sets are equal values."""
    block = chain_of(1)
    source = random.Random(7)
    names = [named(i) for i in range(1, 14)]
    for name in names:
        await writer.set(name, [])
    held: set[int] = set()
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        for _ in range(60):
            number = source.randint(1, 13)
            held ^= {number}
            await writer.set(names[number - 1], block, present=number in held)
            key, field = SHARD.entry(block[0])
            value = await client.hget(key, field)
            assert value == (" ".join(map(str, sorted(held))) or None)


async def test_a_foreign_value_gives_way(writer: Writer, redis_url: str) -> None:
    """What is no list of ids is written over, so that the next batch is not refused for ever."""
    (block,) = chain_of(1)
    key, field = SHARD.entry(block)
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        await client.hset(key, field, "of no use")
        assert await writer.set(named(1), [block]) == 1
        assert await client.hget(key, field) == "1"


async def test_foreign_things_are_an_unavailable_index(
    writer: Writer, index: BlockIndex, redis_url: str
) -> None:
    """A wrong type or a value that is no list of ids is a reason, not a crash."""
    chain = chain_of(2)
    await writer.set(named(1), chain)
    key, field = SHARD.entry(chain[0])
    async with Redis.from_url(redis_url) as client:
        await client.hset(key, field, "spam")
        with pytest.raises(IndexUnavailable, match="foreign_entry"):
            await index.match([SHARD], chain)
        await client.delete(key)
        await client.set(key, "spam")
        with pytest.raises(IndexUnavailable, match="wrongtype"):
            await index.match([SHARD], chain)
        await client.delete(key)
        await client.hset(SHARD.holders, "spam", "spam")
        await client.hset(SHARD.holders, "version", "other")
        assert await matched(index, [SHARD], chain) == {}


async def test_another_schema_is_refused(writer: Writer, redis_url: str) -> None:
    """An index written by another version is not touched."""
    async with Redis.from_url(redis_url) as client:
        await client.set(SCHEMA_KEY, "0")
    with pytest.raises(ConfigError, match="schema"):
        await writer.store.prepare({MODEL: 1})


async def test_scripts_that_redis_forgot_are_loaded_again(
    writer: Writer, index: BlockIndex, redis_url: str
) -> None:
    """SCRIPT FLUSH costs one more round."""
    chain = chain_of(3)
    await writer.set(named(1), chain[:1])
    async with Redis.from_url(redis_url) as client:
        await client.script_flush()
    assert await matched(index, [SHARD], chain) == {named(1): 1}
    await writer.set(named(1), chain)
    assert await matched(index, [SHARD], chain) == {named(1): 3}


async def test_many_lookups_at_once_do_not_mix(writer: Writer, index: BlockIndex) -> None:
    """Each gets its own answer, cancelled ones harm nobody."""
    chains = [chain_of(30, seed) for seed in range(20)]
    for seed, chain in enumerate(chains):
        await writer.set(named(1), chain[: seed + 1])
    tasks = [asyncio.create_task(matched(index, [SHARD], chain)) for chain in chains]
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for seed, answer in enumerate(answers):
        if seed % 3:
            assert answer == {named(1): seed + 1} or isinstance(answer, IndexUnavailable)
    assert await matched(index, [SHARD], chains[5]) == {named(1): 6}


async def test_a_stall_of_our_own_is_no_timeout(
    writer: Writer, index: BlockIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that came while the loop stood still is read."""
    monkeypatch.setattr(limits, "LOOKUP_S", 0.02)
    chain = chain_of(3)
    await writer.set(named(1), chain)
    asked = asyncio.create_task(matched(index, [SHARD], chain))
    for _ in range(3):
        await asyncio.sleep(0)
    time.sleep(3 * limits.LOOKUP_S)  # noqa: ASYNC251 - the stall
    assert await asked == {named(1): 3}


async def test_no_redis_is_a_reason() -> None:
    """Nothing listens: the lookup says so at once."""
    index = BlockIndex.connect("redis://127.0.0.1:1/0")
    with pytest.raises(IndexUnavailable, match="connection"):
        await index.match([SHARD], chain_of(1))
    await index.aclose()


async def test_a_frozen_redis_is_a_timeout() -> None:
    """A server that was stopped in its tracks does not hold a request up."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
    ):
        index = BlockIndex.connect(server.url)
        await index.warm()
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(IndexUnavailable, match="timeout"):
            await index.match([SHARD], chain_of(1))
        os.kill(server.pid, signal.SIGCONT)
        await index.aclose()

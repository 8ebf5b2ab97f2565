"""The indexer on real sockets and a real Redis: what engines send is what lookups find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EndpointName, ModelName
from kvatlas.common.keyspace import shards_of
from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.router.lookup import BlockIndex
from tests.fakes.publisher import CLEARED, FakePublisher, removed, stored
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

MODEL = ModelName("org/tiny model")
SIZE = 4
NAME = EndpointName("127.0.0.1:8101")
TOKENS = list(range(100, 116))
SHARDS = shards_of(MODEL, 1)


def hashes(tokens: list[int] = TOKENS) -> list[BlockHash]:
    """Hash a prompt as a router does."""
    return chain(root_hash(MODEL, SIZE), tokens, SIZE)


async def eventually(check: Callable[[], object], what: str) -> None:
    """Wait until something holds; asynchronous checks are awaited."""
    for _ in range(300):
        result = check()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(what)


class Fleet:
    """One fake engine, an indexer, and a reader."""

    def __init__(self, publisher: FakePublisher, indexer: Indexer, index: BlockIndex) -> None:
        self.publisher = publisher
        self.indexer = indexer
        self.index = index

    async def match(self, tokens: list[int] = TOKENS) -> int:
        """Look a prompt up."""
        found = (await self.index.match(SHARDS, hashes(tokens))).get(NAME)
        return found.blocks if found else 0

    async def expect(self, blocks: int, tokens: list[int] = TOKENS) -> None:
        """Wait until a prompt's match is as long as this."""

        async def matches() -> bool:
            return await self.match(tokens) == blocks

        await eventually(matches, f"a match of {blocks}, not {await self.match(tokens)}")

    async def live(self) -> None:
        """Wait until the indexer follows the engine."""
        sequencer = self.indexer.feeds[0].sequencer
        await eventually(lambda: sequencer.phase == "live", "live")

    def epochs(self, reason: str) -> float:
        """Count the epochs opened for a reason."""
        value = self.indexer.metrics.registry.get_sample_value(
            "kvatlas_indexer_epochs_total", {"endpoint": NAME, "reason": reason}
        )
        return value or 0.0


def settings_for(publisher: FakePublisher, redis_url: str, *, replay: bool = True) -> Settings:
    """Configure one endpoint."""
    endpoint = {"url": f"http://{NAME}", "model": MODEL, "events": publisher.events}
    if replay:
        endpoint["replay"] = publisher.replay
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": MODEL, "tokenizer": "-"}],
            "endpoints": [endpoint],
            "indexer": {"admin_port": 0},
        }
    )


@asynccontextmanager
async def running(
    publisher: FakePublisher, redis_url: str, *, replay: bool = True
) -> AsyncIterator[Fleet]:
    """Run an indexer for one endpoint."""
    index = BlockIndex.connect(redis_url)
    async with indexing(settings_for(publisher, redis_url, replay=replay)) as indexer:
        yield Fleet(publisher, indexer, index)
    await index.aclose()


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    """Run a fake engine and an indexer that is live on it."""
    async with FakePublisher() as publisher, running(publisher, redis_url) as started:
        await started.live()
        yield started


async def test_stored_blocks_are_found_and_removed_ones_are_not(fleet: Fleet) -> None:
    """What is stored matches up to the first block that was removed."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.publisher.publish(stored([13, 14], TOKENS[8:], parent=12))
    await fleet.expect(4)
    await fleet.publisher.publish(removed(14), removed(13))
    await fleet.expect(2)


async def test_a_copy_keeps_a_block_present(fleet: Fleet) -> None:
    """A block that was stored twice is gone after the second removal, not the first."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]), stored([11], TOKENS[:4]))
    await fleet.publisher.publish(removed(11))
    await fleet.publisher.publish(stored([77], [1, 2, 3, 4]))
    await fleet.expect(1, [1, 2, 3, 4])
    assert await fleet.match() == 1
    await fleet.publisher.publish(removed(11))
    await fleet.expect(0)


async def test_what_was_sent_before_the_start_is_replayed(redis_url: str) -> None:
    """An indexer that comes late knows what was stored before."""
    async with FakePublisher() as publisher:
        publisher.record(stored([11, 12], TOKENS[:8]))
        async with running(publisher, redis_url) as late:
            await late.expect(2)


@pytest.mark.parametrize("topic", [True, False])
async def test_a_gap_is_replayed(redis_url: str, topic: bool) -> None:  # noqa: FBT001 - a case
    """A message lost on its way is asked for, in the reply forms of old and new engines."""
    async with (
        FakePublisher(topic_in_replay=topic) as publisher,
        running(publisher, redis_url) as fleet,
    ):
        await fleet.live()
        await publisher.publish(stored([11], TOKENS[:4]))
        publisher.record(stored([12], TOKENS[4:8], parent=11))
        await publisher.publish(stored([13], TOKENS[8:12], parent=12))
        await fleet.expect(3)
        assert fleet.epochs("gap") == fleet.epochs("lost") == 0


async def test_a_hole_in_a_replay_is_asked_for_again(fleet: Fleet) -> None:
    """A replay that loses a message and still says END is not believed."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]))
    fleet.publisher.record(stored([12], TOKENS[4:8], parent=11))
    fleet.publisher.record(stored([13], TOKENS[8:12], parent=12))
    fleet.publisher.lose_once = {1}
    await fleet.publisher.publish(stored([14], TOKENS[12:], parent=13))
    await fleet.expect(4)
    assert fleet.epochs("lost") == 0


async def test_the_last_message_of_a_silent_engine_is_noticed(fleet: Fleet) -> None:
    """A lost message after which nothing follows is found by looking again."""
    fleet.publisher.record(stored([11], TOKENS[:4]))
    await fleet.expect(1)


async def test_what_cannot_be_replayed_ends_the_epoch(fleet: Fleet) -> None:
    """A gap that the engine no longer remembers forgets what was known."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]))
    await fleet.expect(1)
    fleet.publisher.next_seq = 10
    fleet.publisher.replay_log.clear()
    await fleet.publisher.publish(stored([21], [1, 2, 3, 4]))
    await fleet.expect(0)
    await fleet.expect(1, [1, 2, 3, 4])
    assert fleet.epochs("lost") == 1


async def test_children_are_placed_after_a_doubt(fleet: Fleet) -> None:
    """A block whose parent was stored in a former epoch is still known by its hash."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]))
    await fleet.expect(1)
    fleet.publisher.next_seq = 10
    fleet.publisher.replay_log.clear()
    await fleet.publisher.publish(stored([12], TOKENS[4:8], parent=11), stored([11], TOKENS[:4]))
    await fleet.expect(2)


async def test_a_restart_is_noticed(fleet: Fleet) -> None:
    """After a restart only what the new life stores is there."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    await fleet.publisher.restart()
    fleet.publisher.record(stored([31], [1, 2, 3, 4]))
    await fleet.expect(1, [1, 2, 3, 4])
    await fleet.expect(0)
    assert fleet.epochs("restart") == 1


async def test_a_restart_that_ran_ahead_is_noticed(fleet: Fleet) -> None:
    """A new life whose sequence is beyond the old one's looks like a gap and is none."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    await fleet.publisher.restart()
    for number in range(5):
        fleet.publisher.record(stored([40 + number], [number] * 4))
    await fleet.expect(1, [4] * 4)
    await fleet.expect(0)


async def test_a_reconnect_alone_forgets_nothing(fleet: Fleet) -> None:
    """The same life is recognised by its last batch."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    fleet.publisher.close()
    await fleet.publisher.open()
    fleet.publisher.record(stored([13], TOKENS[8:12], parent=12))
    await fleet.expect(3)
    assert fleet.epochs("restart") == fleet.epochs("reconnect") == 0


async def test_a_clear_forgets_at_once_and_what_follows_counts(fleet: Fleet) -> None:
    """AllBlocksCleared comes first in the batch of the next step."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    await fleet.publisher.publish(CLEARED, stored([51], [1, 2, 3, 4]))
    await fleet.expect(1, [1, 2, 3, 4])
    await fleet.expect(0)
    assert fleet.epochs("cleared") == 1


async def test_a_malformed_batch_is_a_doubt_once_and_then_skipped(fleet: Fleet) -> None:
    """A batch that cannot be read costs an epoch and a replay, and is skipped in it."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]))
    await fleet.expect(1)
    await fleet.publisher.publish(payload=b"\xff\xff\xff")
    await fleet.publisher.publish(stored([12], TOKENS[4:8], parent=11))
    await fleet.expect(0)
    await fleet.expect(2)
    assert fleet.epochs("malformed") == 1
    assert fleet.indexer.feeds[0].sequencer.counts["skipped"] == 1


async def test_frames_of_a_wrong_shape_are_a_doubt(fleet: Fleet) -> None:
    """A message without a sequence stops nothing."""
    await fleet.publisher.publish(stored([11], TOKENS[:4]))
    await fleet.expect(1)
    await fleet.publisher.send_frames([b"kv", b"short", b""])
    await fleet.expect(0)
    await fleet.expect(1)


async def test_without_replay_a_gap_ends_the_epoch(redis_url: str) -> None:
    """An endpoint without a replay socket forgets at a gap and goes on."""
    async with (
        FakePublisher() as publisher,
        running(publisher, redis_url, replay=False) as fleet,
    ):
        await fleet.live()
        await asyncio.sleep(0.2)  # the subscription takes effect
        await publisher.publish(stored([11], TOKENS[:4]))
        await fleet.expect(1)
        publisher.record(removed(11))
        await publisher.publish(stored([61], [1, 2, 3, 4]))
        await fleet.expect(1, [1, 2, 3, 4])
        assert await fleet.match() == 0


async def test_a_replay_socket_that_is_silent_does_not_stop_live_events(redis_url: str) -> None:
    """Live events alone serve on when replays get no answer."""
    async with FakePublisher(silent=True) as publisher, running(publisher, redis_url) as fleet:
        await eventually(lambda: len(publisher.replays) > 0, "a replay")
        await publisher.publish(stored([11], TOKENS[:4]))
        await fleet.expect(1)


async def test_an_empty_redis_is_filled_from_memory(fleet: Fleet, redis_url: str) -> None:
    """A Redis that lost everything is written again under a new epoch."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
    assert await fleet.match() == 0
    await fleet.publisher.publish(stored([13], TOKENS[8:12], parent=12))
    await fleet.expect(3)


async def test_past_epochs_are_swept(fleet: Fleet, redis_url: str) -> None:
    """Entries of a past epoch leave Redis by and by, and their holder id is free again."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    await fleet.publisher.publish(CLEARED)
    async with Redis.from_url(redis_url) as client:

        async def swept() -> bool:
            buckets = [key async for key in client.scan_iter("kvatlas:*:b:*")]
            return not buckets and not await client.exists(SHARDS[0].dead)

        await eventually(swept, "no entries")


async def test_two_indexers_share_one_endpoint(fleet: Fleet, redis_url: str) -> None:
    """One of them follows it, and whoever it is, the index is right, in the same epoch."""
    await fleet.publisher.publish(stored([11, 12], TOKENS[:8]))
    await fleet.expect(2)
    settings = settings_for(fleet.publisher, redis_url)
    async with indexing(settings, follows=False) as second:
        await fleet.publisher.publish(stored([13], TOKENS[8:12], parent=12))
        await fleet.expect(3)
        await asyncio.sleep(1.0)  # two looks: it may move to the other, once
        await eventually(lambda: len(fleet.indexer.feeds + second.feeds) == 1, "one owner")
        await fleet.publisher.publish(removed(13), removed(12))
        await fleet.expect(1)
    await fleet.publisher.publish(stored([12], TOKENS[4:8], parent=11))
    await fleet.expect(2)
    assert fleet.epochs("start") == 1
    assert second.metrics.registry.get_sample_value(
        "kvatlas_indexer_epochs_total", {"endpoint": NAME, "reason": "start"}
    ) in (None, 0.0)


async def test_what_was_given_back_is_not_taken_again(redis_url: str) -> None:
    """An indexer that is about to end leaves its endpoints to others, however long it takes."""
    async with FakePublisher() as publisher:
        settings = settings_for(publisher, redis_url)
        quick = settings.indexer.model_copy(update={"lease_s": 0.3})
        async with indexing(settings.model_copy(update={"indexer": quick})) as indexer:
            await indexer.ownership.leave()
            await asyncio.sleep(1.0)  # twenty looks at who owns what
            assert indexer.feeds == []
            async with Redis.from_url(redis_url) as client:
                assert await client.hgetall(SHARDS[0].owners) == {}


async def test_an_endpoint_that_is_no_longer_configured_is_forgotten(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody has followed it for a while, somebody retires it."""
    monkeypatch.setattr(limits, "RETIRE_AFTER_S", 0.5)
    async with FakePublisher() as publisher:
        async with running(publisher, redis_url) as fleet:
            await fleet.live()
            await publisher.publish(stored([11], TOKENS[:4]))
            await fleet.expect(1)
        configured = settings_for(publisher, redis_url).model_dump()
        configured["endpoints"] = []
        async with indexing(Settings.model_validate(configured)):
            index = BlockIndex.connect(redis_url)

            async def forgotten() -> bool:
                return await index.match(SHARDS, hashes()) == {}

            await eventually(forgotten, "no match")
            async with Redis.from_url(redis_url) as client:

                async def retired() -> bool:
                    known = await client.smembers(SHARDS[0].endpoints)
                    return not known and not await client.exists(SHARDS[0].endpoint(NAME))

                await eventually(retired, "no state")
            await index.aclose()

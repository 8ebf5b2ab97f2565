"""An index that begins in the middle of an engine's life learns what stays hot; idle engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, Epoch, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.prompt import CHAT_PATH
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.flights import Board, RouterId
from kvatlas.router.relearning import Relearning
from kvatlas.simulator.app import engine
from tests.contract.test_indexer import TOKENS, running
from tests.fakes.place import CHAT, KNOWN, Place, fast_engine, routed, settings_for, sources_of
from tests.fakes.publisher import CLEARED, FakePublisher, removed, stored
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

SHARD = Shard(ModelName("m"), 0)
OTHER = {**CHAT, "messages": [{"role": "user", "content": "And what of the harbour? " * 20}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than in production."""
    monkeypatch.setattr(limits, "RELEARN_POLL_S", 0.05)


@asynccontextmanager
async def late(
    redis_url: str, engine_options: dict[str, Any], **options: Any
) -> AsyncIterator[Place]:
    """Run an engine that has cached a chat, then an indexer that comes too late to hear of it."""
    async with engine(fast_engine(**{"replay_batches": 1, **engine_options})) as real:
        async with aiohttp.ClientSession() as session:
            for chat in (CHAT, OTHER):
                async with session.post(real.url + CHAT_PATH, json=chat) as reply:
                    assert reply.status == 200
        settings = settings_for(real.url, redis_url, sources_of(real), **options)
        async with indexing(settings) as indexer, routed(settings, real.url) as place:
            place.indexer = indexer
            yield place


async def until(check: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    for _ in range(200):
        found = check()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(what)


def relearned(place: Place) -> float:
    """Count the requests that made the engine announce what they hit."""
    return place.count(place.running.metrics.relearned, place.endpoint.name)


async def predicted(place: Place) -> float:
    """Send the chat; give the tokens that it was predicted to hit."""
    counter = place.running.metrics.match_tokens
    before = place.count(counter, "m")
    await place.chat()
    await asyncio.sleep(0.1)
    return place.count(counter, "m") - before


async def flagged(redis_url: str) -> bool:
    """Tell whether the index says that hits are wanted."""
    async with Redis.from_url(redis_url) as client:
        return bool(await client.exists(SHARD.relearning))


async def test_what_stays_hot_is_learned_again(redis_url: str) -> None:
    """The first hit is a surprise and is announced; the next one is predicted."""
    async with late(redis_url, {}) as place:
        await until(lambda: flagged(redis_url), "relearning")
        async with Redis.from_url(redis_url, decode_responses=True) as client:
            state = await client.hgetall(SHARD.endpoint(place.endpoint.name))
            assert state["relearning"] == state["epoch"]
        await asyncio.sleep(0.2)
        assert await predicted(place) == 0
        assert relearned(place) == 1

        async def known() -> bool:
            return await predicted(place) > 0

        await until(known, "the chat's blocks")
        predictions = place.running.metrics.predictions
        assert place.count(predictions, place.endpoint.name, "under") >= 1
        assert place.count(predictions, place.endpoint.name, "exact") >= 1
        assert place.count(predictions, place.endpoint.name, "over") == 0


async def test_hits_that_were_announced_often_leave_no_phantom(redis_url: str) -> None:
    """After the engine has evicted the blocks, the index holds none of them."""
    async with late(redis_url, {"num_blocks": 64, "max_model_len": 1_000}) as place:
        await until(lambda: flagged(redis_url), "relearning")
        await asyncio.sleep(0.2)
        for _ in range(10):
            await predicted(place)
        assert await predicted(place) > 0
        for number in range(6):
            words = f"Tell me of bridge {number}. " * 40
            await place.chat({**CHAT, "messages": [{"role": "user", "content": words}]})
        await place.settled()
        assert await predicted(place) == 0
        predictions = place.running.metrics.predictions
        assert place.count(predictions, place.endpoint.name, "over") == 0


async def test_an_operator_may_do_without(redis_url: str) -> None:
    """With `relearn: false` no request is changed, and hits stay surprises."""
    async with late(redis_url, {}, relearn=False) as place:
        await until(lambda: flagged(redis_url), "relearning")
        for _ in range(3):
            assert await predicted(place) == 0


async def test_bodies_with_arguments_of_their_own_are_left_alone(redis_url: str) -> None:
    """A client's `vllm_xargs` stays as it is."""
    async with late(redis_url, {}) as place:
        await until(lambda: flagged(redis_url), "relearning")
        await asyncio.sleep(0.2)
        await place.chat({**CHAT, "vllm_xargs": {"a": 1}})
        assert relearned(place) == 0


async def test_an_engine_that_is_known_from_its_start_announces_nothing(redis_url: str) -> None:
    """Where the replay reaches back to the first batch there is nothing to be learned."""
    async with late(redis_url, {"replay_batches": 1_000}) as place:

        async def known() -> bool:
            return await predicted(place) > 0

        await until(known, "the chat's blocks")
        assert not await flagged(redis_url)
        assert relearned(place) == 0


async def test_an_idle_engine_tells_of_a_clear(redis_url: str) -> None:
    """A request of one token brings out what an idle engine has kept to itself."""
    async with late(redis_url, {"replay_batches": 1_000}, idle_probe_s=0.5) as place:

        async def known() -> bool:
            return await predicted(place) > 0

        await until(known, "the chat's blocks")
        async with place.session.post(f"{place.engine_url}/reset_prefix_cache") as reply:
            assert reply.status == 200

        async def forgotten() -> bool:
            async with Redis.from_url(redis_url) as client:
                state = SHARD.endpoint(place.endpoint.name)
                return await client.hget(state, "reason") == b"cleared"

        await until(forgotten, "the clear")
        probes = place.running.metrics.idle_probes
        assert place.count(probes, place.endpoint.name, "answered") >= 1
        assert place.count(probes, place.endpoint.name, "failed") == 0


@pytest.mark.parametrize("news", ["restart", "clear"])
async def test_copies_count_again_when_all_is_known(redis_url: str, news: str) -> None:
    """A blind epoch counts none; what begins with nothing does at once, also with copies in it."""
    async with FakePublisher() as publisher:
        for block in (1, 2):
            await publisher.publish(stored([block], [block] * 4))
        del publisher.replay_log[0]
        async with running(publisher, redis_url) as fleet:
            await fleet.live()
            await fleet.expect(1, [2] * 4)
            await publisher.publish(stored([2], [2] * 4), removed(2))
            await fleet.expect(0, [2] * 4)
            if news == "restart":
                await publisher.restart()
            begin = [CLEARED] if news == "clear" else []
            await publisher.publish(*begin, stored([11, 12], TOKENS[:8]))
            await fleet.expect(2)
            await publisher.publish(
                stored([11, 12], TOKENS[:8]), removed(12), stored([13], [7] * 4)
            )
            await fleet.expect(1, [7] * 4)
            assert await fleet.match() == 2


async def test_nobody_asks_an_epoch_that_is_over(redis_url: str) -> None:
    """What lookups see of a newer epoch counts before the next look at the flags."""
    seen: list[Epoch | None] = [None]
    relearning = Relearning(redis_url, [SHARD], lambda _shard, _name: seen[0])
    name = EndpointName("10.0.0.1:8000")
    stand = Board(RouterId("r"), 8_000.0).stand(EndpointName("a:1"))
    endpoint = Endpoint(
        name, ModelName("m"), f"http://{name}", 0, SHARD, None, 16, stand, facts=KNOWN
    )
    async with Redis.from_url(redis_url) as client:
        await client.hset(SHARD.relearning, mapping={name: "7", "10.0.0.2:8000": "spam"})
    task = asyncio.create_task(relearning.run())
    await until(lambda: relearning.wants(endpoint, {}), "the flag")
    for epoch, wanted in ((Epoch(7), True), (Epoch(8), False), (None, True)):
        seen[0] = epoch
        assert relearning.wants(endpoint, {}) is wanted
    endpoint.stand.awaiting = 2
    assert not relearning.wants(endpoint, {}), "something waits there"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await relearning.aclose()

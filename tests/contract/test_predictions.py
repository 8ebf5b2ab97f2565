"""Predicted against actual hits, in answers, metrics, the log, and notes of doubt in Redis."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.ids import ModelName
from kvatlas.common.keyspace import Shard
from tests.fakes.place import (
    CHAT,
    SIZE,
    STREAM,
    chat_ids,
    faked,
    settings_for,
    simulated,
)
from tests.fakes.publisher import FakePublisher, stored
from tests.fakes.services import indexing
from tests.fakes.upstream import plain

pytestmark = pytest.mark.usefixtures("patient")


async def test_predictions_are_compared_with_every_answer(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole and streamed, asked or not; both figures stand in the log line and in the metrics."""
    async with simulated(redis_url) as place:
        await place.chat()
        await place.settled()
        capfd.readouterr()
        answer = await place.chat()
        for _ in range(2):
            await place.post(STREAM)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        name, metrics = place.endpoint.name, place.running.metrics
        # The very first stream went unasked, so three answers of four told.
        assert place.count(metrics.predictions, name, "exact") == 3
        assert place.count(metrics.predicted_hit_tokens, name) == 2 * cached
        assert place.count(metrics.actual_hit_tokens, name) == 2 * cached
        assert place.count(metrics.over_tokens, name) == 0
        await place.post({**CHAT, "n": 2})
        assert place.count(metrics.predictions, name, "exact") == 3
    logs = "".join(capfd.readouterr())
    both = rf"cached_tokens\W+{cached}\b.*match_tokens\W+{cached}\b"
    assert len(re.findall(both, logs)) >= 2


async def liar(publisher: FakePublisher) -> None:
    """Announce the blocks of CHAT's prompt, and no other ones."""
    ids = chat_ids()
    blocks = len(ids) // SIZE
    await publisher.publish(
        stored(list(range(1, blocks + 1)), ids[: blocks * SIZE], block_size=SIZE)
    )


async def test_an_endpoint_whose_predictions_run_over_is_put_into_doubt(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One note with its epoch, in the shard of the endpoint, and not one per answer."""
    monkeypatch.setattr(limits, "DOUBT_SPAN_S", 0.2)
    usage = {"prompt_tokens": len(chat_ids()), "prompt_tokens_details": {"cached_tokens": 0}}
    answer = json.dumps({"choices": [], "usage": usage}).encode()
    async with FakePublisher() as publisher:
        events = {"events": publisher.events, "replay": publisher.replay}
        await liar(publisher)
        async with faked(plain(answer), redis_url, events) as (fake, place):
            settings = settings_for(f"http://127.0.0.1:{fake.port}", redis_url, events)
            async with indexing(settings) as indexer:
                place.indexer = indexer
                await place.settled()
                name, metrics = place.endpoint.name, place.running.metrics
                for _ in range(limits.DOUBT_ANSWERS_MIN):
                    await place.chat()
                assert place.count(metrics.doubts, name, "noted") == 0
                await asyncio.sleep(limits.DOUBT_SPAN_S)
                for _ in range(2 * limits.DOUBT_ANSWERS_MIN):
                    await place.chat()
                await asyncio.sleep(0.1)
                over = place.count(metrics.predictions, name, "over")
                assert over >= limits.DOUBT_ANSWERS_MIN
                assert place.count(metrics.doubts, name, "noted") == 1
        async with Redis.from_url(redis_url, decode_responses=True) as redis:
            notes = await redis.hgetall(Shard(ModelName("m"), 0).doubts)
    # An indexer that reads notes may have taken it already.
    for key, note in notes.items():
        assert key == name
        assert re.fullmatch(r"1 overpredicted answers=\d+ share=1\.00", str(note))


async def test_a_note_that_cannot_be_left_harms_nobody(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted; the requests are answered, and the router lives."""
    monkeypatch.setattr(limits, "DOUBT_SPAN_S", 0.0)
    async with Redis.from_url(redis_url) as redis:
        await redis.set(Shard(ModelName("m"), 0).doubts, "of another type")
    async with FakePublisher() as publisher:
        events = {"events": publisher.events, "replay": publisher.replay}
        await liar(publisher)
        usage = {"prompt_tokens": len(chat_ids()), "prompt_tokens_details": {"cached_tokens": 0}}
        answer = json.dumps({"choices": [], "usage": usage}).encode()
        async with faked(plain(answer), redis_url, events) as (fake, place):
            settings = settings_for(f"http://127.0.0.1:{fake.port}", redis_url, events)
            async with indexing(settings) as indexer:
                place.indexer = indexer
                await place.settled()
                for _ in range(limits.DOUBT_ANSWERS_MIN + 5):
                    await place.chat()
                await asyncio.sleep(0.1)
                doubts = place.running.metrics.doubts
                assert place.count(doubts, place.endpoint.name, "failed") == 1
                await place.chat()

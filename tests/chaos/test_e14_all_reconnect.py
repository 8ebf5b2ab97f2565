"""E14, hundreds of endpoints reconnect at once: asked in turn, and the loop goes on turning."""

from __future__ import annotations

import time

from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.indexer.feed import Feed
from tests.chaos.conftest import Report, loop_stalls
from tests.fakes.chaos_place import Scale, own_redis
from tests.fakes.engines import until
from tests.fakes.publisher_crowd import BATCHES, Crowd, publisher_crowd
from tests.fakes.services import indexing

ENDPOINTS = {False: 100, True: 500}
STALL_MAX_S = 0.5
"""Nothing may hang; the figure itself is reported, since two cores are shared by all."""


async def test_e14_all_endpoints_reconnect_at_once(scale: Scale) -> None:
    """No epoch ends, each asks for its last batch once or twice."""
    count, took = ENDPOINTS[scale.is_full], []
    worst = 0.0
    with own_redis() as server:
        async with publisher_crowd(count) as crowd:
            settings = settings_for(crowd, server.url)
            began = time.monotonic()
            async with loop_stalls() as starting, indexing(settings) as indexer:
                await all_are_live(indexer, 0)
                started_s = time.monotonic() - began
                for _ in range(scale.rounds):
                    before = handshakes(indexer)
                    async with loop_stalls() as stalls:
                        await crowd.cut()
                        began = time.monotonic()
                        await all_are_live(indexer, before + count)
                        took.append(time.monotonic() - began)
                    worst = max(worst, *stalls)
                epochs = {
                    feed.name: feed.mirror.epoch for feed in indexer.feeds if feed.mirror.epoch != 1
                }
                assert epochs == {}, "a reconnect is no doubt"
    assert worst < STALL_MAX_S
    Report(
        "E14",
        f"{count} publishers lose all connections at once",
        f"each asked for its last batch, no new epoch; longest stall of the loop "
        f"{1e3 * worst:.0f} ms ({1e3 * max(starting):.0f} ms at the start, live after "
        f"{started_s:.1f} s)",
        took,
        None,
    ).tell()


def settings_for(crowd: Crowd, redis_url: str) -> Settings:
    """Configure an indexer for all of them."""
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": "m", "tokenizer": "-"}],
            "endpoints": [
                {
                    "url": f"http://10.0.{number // 200}.{number % 200}:8000",
                    "model": "m",
                    "events": events,
                    "replay": replay,
                }
                for number, (events, replay) in enumerate(crowd.sources)
            ],
            "indexer": {"admin_port": 0},
        }
    )


def handshakes(indexer: Indexer) -> int:
    """Count the replays that were asked for, one at least for each connection."""
    return sum(feed.sequencer.counts["replay"] for feed in indexer.feeds)


async def all_are_live(indexer: Indexer, replays: int) -> None:
    """Wait until all endpoints are followed, and so many replays were asked for."""
    await until(lambda: handshakes(indexer) >= replays and all(map(is_live, indexer.feeds)), 20.0)


def is_live(feed: Feed) -> bool:
    """Tell whether an endpoint is followed, and Redis knows it."""
    at = (feed.sequencer.phase, feed.sequencer.last_seq, feed.mirror.is_current)
    return at == ("live", BATCHES - 1, True)

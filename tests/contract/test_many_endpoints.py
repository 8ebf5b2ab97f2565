"""An indexer with more endpoints than ZMQ has sockets for by default."""

from __future__ import annotations

import asyncio

import pytest

from kvatlas.common.settings import Settings
from tests.fakes.publisher import FakePublisher, stored
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

ENDPOINTS = 700


async def test_many_endpoints_are_followed_at_once(redis_url: str) -> None:
    """Those that are away keep nobody from being followed."""
    async with FakePublisher() as publisher:
        gone = [
            {
                "url": f"http://127.{1 + number // 250}.0.{number % 250}:1",
                "model": "m",
                "events": "tcp://127.0.0.1:9",
                "replay": "tcp://127.0.0.1:9",
            }
            for number in range(ENDPOINTS)
        ]
        there = {
            "url": "http://127.0.4.1:1",
            "model": "m",
            "events": publisher.events,
            "replay": publisher.replay,
        }
        settings = Settings.model_validate(
            {
                "redis": {"url": redis_url},
                "models": [{"name": "m", "tokenizer": "-"}],
                "endpoints": [*gone, there],
                "indexer": {"admin_port": 0},
            }
        )
        async with indexing(settings) as indexer:
            await publisher.publish(stored([1, 2], list(range(8))))
            (last,) = (feed for feed in indexer.feeds if feed.name == "127.0.4.1:1")
            for _ in range(400):
                if len(set(last.cache.entries())) == 2 and last.mirror.is_current:
                    break
                await asyncio.sleep(0.05)
            assert len(set(last.cache.entries())) == 2
            assert last.mirror.is_current

"""Engines that are found are indexed, and given up when they are gone for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.settings import Settings
from kvatlas.indexer import chores
from kvatlas.indexer.app import Indexer
from kvatlas.simulator.app import engine
from tests.contract.test_discovery import CHATS, names, routed
from tests.fakes.engines import BLOCK_SIZE, until
from tests.fakes.found import FoundFile
from tests.fakes.services import indexing
from tests.fakes.upstream import plain, upstream

pytestmark = pytest.mark.usefixtures("patient")

TEXT = "a long story about a lighthouse and its keeper. " * 20
CHAT = {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": TEXT}]}
SHARD = Shard(ModelName("demo"), 0)


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and give up soon."""
    monkeypatch.setattr(limits, "DISCOVERY_FILE_LOOK_S", 0.02)
    monkeypatch.setattr(limits, "DISCOVERY_RETRY_S", 0.02)
    monkeypatch.setattr(limits, "RETIRE_AFTER_S", 0.3)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.2)
    monkeypatch.setattr(chores, "LOOK_S", 0.1)


def asking(found: FoundFile, redis_url: str, *models: str) -> Settings:
    """Configure services that ask engines where their events are."""
    return found.settings(redis_url, *models, discovery={"events_port": "ask"})


@asynccontextmanager
async def publishing(port: int = 0) -> AsyncIterator[str]:
    """Run an engine whose events are at ports that nobody knows beforehand; give its URL."""
    settings = Settings.model_validate({
        "models": [{"name": "demo", "tokenizer": "demo"}],
        "engine": {
            "port": port, "events": "tcp://127.0.0.1:0", "replay": "tcp://127.0.0.1:0",
            "block_size": BLOCK_SIZE, "time_scale": 1_000.0,
        },
    })  # fmt: skip
    async with engine(settings) as running:
        yield running.url


def known(redis_url: str) -> set[str]:
    """List the endpoints that the index knows."""
    with Redis.from_url(redis_url) as client:
        found: Any = client.smembers(SHARD.endpoints)
        return {name.decode() for name in found}


def counted(indexer: Indexer) -> set[str]:
    """List the endpoints that the indexer's metrics tell of."""
    samples = (sample for family in indexer.metrics.collect() for sample in family.samples)
    return {each.labels["endpoint"] for each in samples if "endpoint" in each.labels}


async def matched(client: Any) -> int:
    """Send the chat; give how much of it was believed to be cached."""
    async with client.post(CHATS, json=CHAT) as reply:
        assert reply.status == 200
        return int(reply.headers["x-kvatlas-match-tokens"])


async def until_matched(client: Any) -> None:
    """Send the chat until it is believed to be cached."""
    for _ in range(100):
        if await matched(client):
            return
        await asyncio.sleep(0.05)
    raise AssertionError


async def test_an_engine_that_is_found_is_matched_by_its_cache(
    redis_url: str, found: FoundFile
) -> None:
    """Within seconds; when it is gone for good nothing of it stays, and it may come back."""
    settings = asking(found, redis_url)
    async with AsyncExitStack() as stack:
        indexer = await stack.enter_async_context(indexing(settings))
        running, client = await stack.enter_async_context(routed(settings))
        async with publishing() as url:
            name, port = url.removeprefix("http://"), int(url.rpartition(":")[2])
            found.add(url)
            await until(lambda: names(running) == [name])
            await until_matched(client)
            assert known(redis_url) == {name}
            found.remove(url)
            await until(lambda: not indexer.feeds and not known(redis_url))
            await until(lambda: counted(indexer) == set())
            found.add(url)
            # The same engine, with all of its cache, which it replays.
            await until(lambda: known(redis_url) == {name} == set(names(running)))
            await until_matched(client)
            found.remove(url)
            await until(lambda: not known(redis_url))
        async with publishing(port) as url:
            found.add(url)
            await until(lambda: len(indexer.feeds) == 1)
            await until(lambda: names(running) == [name])
            # Another one, of which nothing is believed before it has cached anything.
            assert await matched(client) == 0
            await until_matched(client)


async def test_an_engine_that_comes_back_elsewhere_is_followed_there(
    redis_url: str, found: FoundFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each life its events have other ports, and it is asked for them again."""
    monkeypatch.setattr(limits, "DISCOVERY_REFRESH_S", 0.1)
    settings = asking(found, redis_url)
    async with AsyncExitStack() as stack:
        indexer = await stack.enter_async_context(indexing(settings))
        followings = indexer.ownership.followings
        running, client = await stack.enter_async_context(routed(settings))
        async with publishing() as url:
            port, name = int(url.rpartition(":")[2]), EndpointName(url.removeprefix("http://"))
            found.add(url)
            await until(lambda: name in followings and names(running) == [name])
            before = followings[name].source
            await until_matched(client)
        async with publishing(port):
            await until(lambda: name in followings and followings[name].source != before)
            await until_matched(client)
            assert followings[name].source.events != before.events


async def test_an_indexer_that_starts_gives_nobody_up_who_is_not_found_yet(
    redis_url: str, found: FoundFile
) -> None:
    """Neither while the place is silent, nor while an engine has not said where its events are."""
    settings = asking(found, redis_url)
    async with publishing() as url:
        name = url.removeprefix("http://")
        found.add(url)
        async with indexing(settings) as indexer:
            await until(lambda: known(redis_url) == {name})
            assert len(indexer.feeds) == 1
    found.path.unlink()
    async with indexing(settings), upstream(plain(b"")) as silent:
        await asyncio.sleep(3 * limits.RETIRE_AFTER_S)
        assert known(redis_url) == {name}
        # Found, with nobody at its port to be asked.
        found.write()
        await asyncio.sleep(3 * limits.RETIRE_AFTER_S)
        assert known(redis_url) == {name}
        found.entries.clear()
        found.add(f"http://127.0.0.1:{silent.port}")
        await until(lambda: not known(redis_url))


async def test_engines_without_the_path_have_no_events(redis_url: str, found: FoundFile) -> None:
    """They are routed to all the same, and nobody is waited for."""
    settings = asking(found, redis_url)
    async with upstream(plain(b"{}")) as old, indexing(settings) as indexer:
        found.add(f"http://127.0.0.1:{old.port}")
        async with routed(settings) as (running, client):
            await until(lambda: len(names(running)) == 1)
            async with client.post(CHATS, json=CHAT) as reply:
                assert reply.status == 200
            assert not indexer.feeds


async def test_routers_that_restart_find_everybody_again(redis_url: str, found: FoundFile) -> None:
    """Another one beside the first matches as it does, whenever it learns of an engine."""
    settings = asking(found, redis_url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(indexing(settings))
        first, client = await stack.enter_async_context(routed(settings))
        for _ in range(2):
            found.add(await stack.enter_async_context(publishing()))
        await until(lambda: len(names(first)) == 2)
        await until_matched(client)
        for _ in range(2):
            async with routed(settings) as (running, other):
                await until(lambda running=running: len(names(running)) == 2)  # type: ignore[misc]
                await until_matched(other)

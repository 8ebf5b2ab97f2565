"""From events to the chosen engine: publishers, an indexer, Redis and a router, all real."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import router
from tests.fakes.publisher import FakePublisher, stored
from tests.fakes.services import indexing
from tests.fakes.upstream import METRICS, Upstream, plain, upstream

pytestmark = pytest.mark.usefixtures("patient")

ANSWER = b'{"choices": []}'
TOKENS = list(range(100, 164))


@dataclass
class Scene:
    """A router in front of engines whose events are followed."""

    engines: Sequence[Upstream]
    publishers: Sequence[FakePublisher]
    client: aiohttp.ClientSession
    admin: aiohttp.ClientSession

    async def explain(self, tokens: list[int], **more: Any) -> dict[str, tuple[int, int]]:
        """Give blocks and tokens of the match of each endpoint, by its place and rank."""
        body = {"model": "m", "prompt": tokens, **more}
        content = {"path": "/v1/completions", "body": body}
        async with self.admin.post("/explain", json=content) as reply:
            explained = await reply.json()
        assert explained["fallback"] is None
        return {
            self.place(one["endpoint"]): (one["match_blocks"], one["match_tokens"])
            for one in explained["candidates"]
        }

    def place(self, endpoint: str) -> str:
        """Name an endpoint by the number of its engine and its rank."""
        address, _, rank = endpoint.partition("#")
        ports = [f"127.0.0.1:{engine.port}" for engine in self.engines]
        return f"{ports.index(address)}#{rank or 0}"

    async def expect(self, tokens: list[int], **matches: int) -> dict[str, tuple[int, int]]:
        """Wait until the matches of some engines' rank 0 have so many tokens."""
        found: dict[str, tuple[int, int]] = {}
        for _ in range(200):
            found = await self.explain(tokens)
            if all(found[f"{name[1:]}#0"][1] == count for name, count in matches.items()):
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(found)

    async def send(self, tokens: list[int]) -> str:
        """Send a request; give the place that it went to."""
        async with self.client.post(
            "/v1/completions", json={"model": "m", "prompt": tokens}
        ) as reply:
            assert reply.status == 200
            return self.place(reply.headers["x-kvatlas-endpoint"])


def configuration(redis_url: str, endpoints: list[dict[str, Any]]) -> Settings:
    """Configure everything."""
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
            "endpoints": [{"model": "m", **endpoint} for endpoint in endpoints],
            "router": {
                "port": 0,
                "admin_port": 0,
                "debug_headers": True,
                "metrics_interval_s": 60,
            },
            "indexer": {"admin_port": 0},
        }
    )


@asynccontextmanager
async def serving(
    settings: Settings, engines: Sequence[Upstream], publishers: Sequence[FakePublisher]
) -> AsyncIterator[Scene]:
    """Run an indexer and a router, both ready."""
    async with (
        indexing(settings) as indexer,
        router(settings) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.admin_port}") as admin,
    ):
        for _ in range(300):
            live = all(feed.sequencer.phase == "live" for feed in indexer.feeds)
            if live and running.readiness() is None:
                break
            await asyncio.sleep(0.02)
        yield Scene(engines, publishers, client, admin)


@pytest.fixture
async def scene(redis_url: str) -> AsyncIterator[Scene]:
    """Run two engines of one model, with blocks of 16 and of 4 tokens."""
    async with AsyncExitStack() as stack:
        engines, publishers, endpoints = [], [], []
        for size in (16, 4):
            engine = await stack.enter_async_context(upstream(plain(ANSWER)))
            engine.metrics = METRICS.replace(b'block_size="16"', b'block_size="%d"' % size)
            publisher = await stack.enter_async_context(FakePublisher())
            engines.append(engine)
            publishers.append(publisher)
            endpoints.append(
                {
                    "url": f"http://127.0.0.1:{engine.port}",
                    "events": publisher.events,
                    "replay": publisher.replay,
                }
            )
        settings = configuration(redis_url, endpoints)
        yield await stack.enter_async_context(serving(settings, engines, publishers))


async def test_block_sizes_live_side_by_side(scene: Scene) -> None:
    """Each engine's blocks are found by its own size, and matches are compared in tokens."""
    coarse, fine = scene.publishers
    await coarse.publish(stored([11, 12], TOKENS[:32], None, 16))
    await fine.publish(stored(list(range(1, 11)), TOKENS[:40], None, 4))
    found = await scene.expect(TOKENS, e0=32, e1=40)
    assert found == {"0#0": (2, 32), "1#0": (10, 40)}
    assert await scene.send(TOKENS) == "1#0"
    await coarse.publish(stored([13], TOKENS[32:48], 12, 16))
    found = await scene.expect(TOKENS, e0=48)
    assert found == {"0#0": (3, 48), "1#0": (10, 40)}
    # An engine that has answered is expected to tell what it cached; this one does not.
    await asyncio.sleep(limits.EVENT_DUE_S)
    assert await scene.send(TOKENS) == "0#0"


@pytest.mark.parametrize(
    ("tokens", "coarse", "fine"),
    [
        (64, (3, 48), (15, 60)),
        (65, (4, 64), (16, 64)),
        (33, (2, 32), (8, 32)),
        (32, (1, 16), (7, 28)),
        (17, (1, 16), (4, 16)),
        (16, (0, 0), (3, 12)),
        (4, (0, 0), (0, 0)),
        (5, (0, 0), (1, 4)),
        (1, (0, 0), (0, 0)),
    ],
)
async def test_the_last_token_is_always_computed(
    scene: Scene, tokens: int, coarse: tuple[int, int], fine: tuple[int, int]
) -> None:
    """Of n tokens at most the blocks that fit into n - 1 are hit, whatever is cached."""
    prompt = [*TOKENS, 1]
    await scene.publishers[0].publish(stored([1, 2, 3, 4], TOKENS, None, 16))
    await scene.publishers[1].publish(stored(list(range(1, 17)), TOKENS, None, 4))
    await scene.expect(prompt, e0=64, e1=64)
    assert await scene.explain(prompt[:tokens]) == {"0#0": coarse, "1#0": fine}


async def test_a_salt_is_an_identity_of_its_own(scene: Scene) -> None:
    """Requests with and without it do not match each other, and do match themselves."""
    extras = [["s1"], None, None, None]
    fine = scene.publishers[1]
    await fine.publish(stored([1, 2, 3, 4], TOKENS[:16], None, 4, extra_keys=extras))
    await fine.publish(stored([5, 6], TOKENS[:8], None, 4))
    await scene.expect(TOKENS, e1=8)
    assert (await scene.explain(TOKENS, cache_salt="s1"))["1#0"] == (4, 16)
    assert (await scene.explain(TOKENS, cache_salt="s2"))["1#0"] == (0, 0)


def neighbours() -> tuple[int, int]:
    """Find two free ports side by side."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port, port + 1


async def test_ranks_are_endpoints_of_their_own(redis_url: str) -> None:
    """What one rank holds is matched for that rank alone, and the request is pinned to it."""
    events, replays = neighbours(), neighbours()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(upstream(plain(ANSWER)))
        ranks = b"".join(METRICS.replace(b'engine="0"', b'engine="%d"' % rank) for rank in (0, 1))
        engine.metrics = ranks
        publishers = [
            await stack.enter_async_context(
                FakePublisher(
                    events=f"tcp://127.0.0.1:{events[rank]}",
                    replay=f"tcp://127.0.0.1:{replays[rank]}",
                )
            )
            for rank in (0, 1)
        ]
        endpoint = {
            "url": f"http://127.0.0.1:{engine.port}",
            "events": publishers[0].events,
            "replay": publishers[0].replay,
            "data_parallel_size": 2,
        }
        settings = configuration(redis_url, [endpoint])
        scene = await stack.enter_async_context(serving(settings, [engine], publishers))
        await publishers[0].publish(stored([7], TOKENS[:16], None, 16))
        await publishers[1].publish(stored([1, 2, 3], TOKENS[:48], None, 16))
        await scene.expect(TOKENS, e0=16)
        for _ in range(100):
            if (found := await scene.explain(TOKENS))["0#1"] == (3, 48):
                break
            await asyncio.sleep(0.02)
        assert found == {"0#0": (1, 16), "0#1": (3, 48)}
        assert await scene.send(TOKENS) == "0#1"
        assert b"x-data-parallel-rank: 1" in engine.requests[0].head.lower()

"""The main job, whole: engines announce, the indexer follows, routers send to the warm pod."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from kvatlas.cli.processes import free_port
from kvatlas.cli.redis_server import RedisServer, running_redis
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.router.app import Running, router
from kvatlas.simulator.app import engine
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

MODEL = "demo"
SECRET = "zyzzyva-marker"  # noqa: S105 - a marker, to be found nowhere
SYSTEM = "You answer questions about the canals of the old town, in full sentences. " * 12


@dataclass
class Town:
    """Two engines, an indexer and two routers in one loop."""

    routers: list[Running]
    indexer: Indexer
    session: aiohttp.ClientSession
    redis: RedisServer

    async def chat(
        self, messages: list[dict[str, str]], *, by: int = 0, **more: Any
    ) -> tuple[dict[str, Any], Any]:
        """Ask through a router; give the answer and its headers."""
        body = {"model": MODEL, "messages": messages, "max_tokens": 12, **more}
        url = f"http://127.0.0.1:{self.routers[by].port}/v1/chat/completions"
        async with self.session.post(url, json=body) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json(), reply.headers

    async def explain(self, messages: list[dict[str, str]], by: int = 0) -> dict[str, Any]:
        """Ask a router what it would do."""
        request = {"path": "/v1/chat/completions", "body": {"model": MODEL, "messages": messages}}
        url = f"http://127.0.0.1:{self.routers[by].admin_port}/explain"
        async with self.session.post(url, json=request) as reply:
            assert reply.status == 200, await reply.text()
            content: dict[str, Any] = await reply.json()
            return content

    async def quiet(self) -> None:
        """Wait until Redis has been told everything that the engines have said."""
        for _ in range(200):
            await asyncio.sleep(0.02)
            if all(feed.mirror.is_current for feed in self.indexer.feeds):
                await asyncio.sleep(0.1)
                return
        raise AssertionError("not quiet")


def configuration(redis_url: str) -> dict[str, Any]:
    """Configure two engines and what stands before them."""
    endpoints = [
        {
            "url": f"http://127.0.0.1:{free_port()}",
            "model": MODEL,
            "events": f"tcp://127.0.0.1:{free_port()}",
            "replay": f"tcp://127.0.0.1:{free_port()}",
        }
        for _ in range(2)
    ]
    return {
        "redis": {"url": redis_url},
        "models": [{"name": MODEL, "tokenizer": str(demo_model_path())}],
        "endpoints": endpoints,
        "router": {"port": 0, "admin_port": 0, "debug_headers": True, "metrics_interval_s": 0.1},
        "indexer": {"admin_port": 0},
        "engine": {"num_blocks": 400, "decode_step_ms": 1.0, "prefill_tokens_per_s": 1e6},
    }


def engine_settings(base: dict[str, Any], endpoint: dict[str, Any]) -> Settings:
    """Configure one of the engines."""
    own = {
        "port": int(endpoint["url"].rsplit(":", 1)[1]),
        "events": endpoint["events"],
        "replay": endpoint["replay"],
    }
    return Settings.model_validate({**base, "engine": {**base["engine"], **own}})


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Run everything, with a Redis of its own that a test may harm."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kva-"))
        redis = stack.enter_context(running_redis(Path(folder)))
        base = configuration(redis.url)
        for endpoint in base["endpoints"]:
            await stack.enter_async_context(engine(engine_settings(base, endpoint)))
        settings = Settings.model_validate(base)
        indexer = await stack.enter_async_context(indexing(settings))
        routers = [await stack.enter_async_context(router(settings)) for _ in range(2)]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = Town(routers, indexer, session, redis)
        for _ in range(200):
            ready = all(running.readiness() is None for running in routers)
            learned = all(e.block_size for running in routers for e in running.endpoints.all())
            live = all(feed.sequencer.phase == "live" for feed in indexer.feeds)
            if ready and learned and live:
                break
            await asyncio.sleep(0.02)
        yield made


def opening(topic: str) -> list[dict[str, str]]:
    """Begin a conversation."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Tell me about {topic}."},
    ]


async def test_follow_up_turns_go_to_the_warm_pod_and_hit_as_predicted(town: Town) -> None:
    """Through either router, the prediction is what the engine reports."""
    messages = opening("bridges")
    homes = set()
    for turn in range(4):
        answer, headers = await town.chat(messages, by=turn % 2)
        usage = answer["usage"]
        assert int(headers["x-kvatlas-prompt-tokens"]) == usage["prompt_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert int(headers["x-kvatlas-match-tokens"]) == cached
        assert (cached > 0) == (turn > 0)
        homes.add(headers["x-kvatlas-endpoint"])
        messages.append(
            {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
        )
        messages.append({"role": "user", "content": "And then?"})
        await town.quiet()
    assert len(homes) == 1


async def test_two_routers_explain_the_same(town: Town) -> None:
    """Model, prompt, blocks and every candidate's match are equal, and nothing is sent."""
    messages = opening("locks")
    _, headers = await town.chat(messages)
    await town.quiet()
    one, two = await town.explain(messages, 0), await town.explain(messages, 1)
    for name in ("model", "prompt_tokens", "block_size", "blocks", "endpoint", "fallback"):
        assert one[name] == two[name]
    matches = [
        {c["endpoint"]: (c["match_blocks"], c["match_tokens"]) for c in each["candidates"]}
        for each in (one, two)
    ]
    assert matches[0] == matches[1]
    assert one["endpoint"] == headers["x-kvatlas-endpoint"]
    assert one["fallback"] is None
    assert one["blocks"] == one["prompt_tokens"] // one["block_size"]
    best = next(c for c in one["candidates"] if c["endpoint"] == one["endpoint"])
    assert best["match_blocks"] == (one["prompt_tokens"] - 1) // one["block_size"]
    assert best["score"] == 1.0
    assert all(0 <= c["score"] <= 1 for c in one["candidates"])
    assert all(name.endswith("_ms") for c in one["candidates"] for name in c["scores"])
    assert set(one["timings_ms"]) == {"render", "tokenize", "hash", "lookup", "score"}


async def test_completions_and_streams_are_served(town: Town) -> None:
    """A completion by text and by token ids, and a stream up to its last event."""
    base = f"http://127.0.0.1:{town.routers[0].port}"
    for prompt in (SYSTEM, [5, 6, 7] * 30):
        body: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": 3}
        async with town.session.post(f"{base}/v1/completions", json=body) as reply:
            assert reply.status == 200
            assert (await reply.json())["usage"]["completion_tokens"] == 3
    body = {"model": MODEL, "messages": opening("boats"), "max_tokens": 5, "stream": True}
    async with town.session.post(f"{base}/v1/chat/completions", json=body) as reply:
        assert reply.content_type == "text/event-stream"
        text = await reply.text()
    assert text.endswith("data: [DONE]\n\n")
    async with town.session.get(f"{base}/v1/models") as reply:
        assert [entry["id"] for entry in (await reply.json())["data"]] == [MODEL]


async def test_a_frozen_redis_costs_no_request(town: Town) -> None:
    """Requests go by load, a metric says why, and matches are back when Redis is."""
    messages = opening("ferries")
    await town.chat(messages)
    await town.quiet()
    os.kill(town.redis.pid, signal.SIGSTOP)
    try:
        answer, headers = await town.chat(messages)
        assert answer["choices"]
        assert headers["x-kvatlas-match-tokens"] == "0"
        assert (await town.explain(messages))["fallback"] == "lookup:timeout"
    finally:
        os.kill(town.redis.pid, signal.SIGCONT)
    registry = town.routers[0].metrics.registry
    labels = {"stage": "lookup", "reason": "timeout"}
    assert registry.get_sample_value("kvatlas_router_fallbacks_total", labels) == 1.0
    for _ in range(50):
        explained = await town.explain(messages)
        if explained["fallback"] is None:
            break
        await asyncio.sleep(0.02)
    assert max(c["match_blocks"] for c in explained["candidates"]) > 0


async def test_a_reset_engine_is_no_longer_warm(town: Town) -> None:
    """A cache that was cleared is forgotten with the engine's next step."""
    messages = opening("towers")
    _, headers = await town.chat(messages)
    await town.quiet()
    home = headers["x-kvatlas-endpoint"]
    async with town.session.post(f"http://{home}/reset_prefix_cache") as reply:
        assert (await reply.json())["success"] is True
    tiny = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    async with town.session.post(f"http://{home}/v1/completions", json=tiny) as reply:
        assert reply.status == 200
    await town.quiet()
    explained = await town.explain(messages)
    assert {c["match_blocks"] for c in explained["candidates"]} == {0}


async def test_what_the_engine_refuses_is_the_engines_to_refuse(town: Town) -> None:
    """Odd requests are forwarded untouched, and its own error reaches the client."""
    url = f"http://127.0.0.1:{town.routers[0].port}/v1/chat/completions"
    for body in ({"model": MODEL}, {"model": MODEL, "messages": []}):
        async with town.session.post(url, json=body) as reply:
            assert reply.status == 400
            assert reply.headers["x-kvatlas-endpoint"]
            assert "error" in await reply.json()


async def test_salted_requests_match_only_their_own_salt(town: Town) -> None:
    """A cache salt parts what is otherwise the same prompt."""
    messages = opening("wells")
    await town.chat(messages, cache_salt="one")
    await town.quiet()
    other, _ = await town.chat(messages, cache_salt="two")
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    await town.quiet()
    same, headers = await town.chat(messages, cache_salt="one")
    cached = same["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == int(headers["x-kvatlas-match-tokens"]) > 0


async def test_nothing_of_a_prompt_is_left_anywhere(
    town: Town, capfd: pytest.CaptureFixture[str]
) -> None:
    """No text in logs, metrics, explanations, errors or Redis."""
    messages = [{"role": "user", "content": f"{SECRET} " * 40}]
    await town.chat(messages, by=0)
    await town.chat(messages, by=1, user=SECRET)
    await town.quiet()
    seen = [str(await town.explain(messages))]
    for port in [running.admin_port for running in town.routers]:
        async with town.session.get(f"http://127.0.0.1:{port}/metrics") as reply:
            seen.append(await reply.text())
    url = f"http://127.0.0.1:{town.routers[0].port}/v1/chat/completions"
    async with town.session.post(url, data=f'{{"model": "{MODEL}", "{SECRET}') as reply:
        assert reply.status == 400
        seen.append(await reply.text())
    async with Redis.from_url(town.redis.url) as client:
        async for key in client.scan_iter("*"):
            seen.append(repr(key) + repr(await client.dump(key)))
            kind = await client.type(key)
            seen.append(repr(await client.hgetall(key)) if kind == b"hash" else "")
    captured = capfd.readouterr()
    seen += [captured.out, captured.err]
    assert not [text for text in seen if SECRET in text]

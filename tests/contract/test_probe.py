"""Engines are asked for their models and token ids, and believed accordingly."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from kvatlas.common import limits
from kvatlas.common.admin import serving
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import PromptBuilder
from kvatlas.common.settings import ModelSettings
from kvatlas.router.app import Running, router
from tests.fakes.engines import other_tokenizer, routed, router_settings, simulated, until
from tests.fakes.upstream import Exchange, plain, upstream

CHAT = "/v1/chat/completions"
DEMO = ModelName("demo")
BODY = {"model": "demo", "messages": [{"role": "user", "content": "hello 2.0"}], "max_tokens": 1}


def verdicts(running: Running) -> list[str]:
    """Give what is known of each endpoint's tokenizer."""
    return [endpoint.facts.tokenizer for endpoint in running.endpoints.all()]


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Read a metric."""
    return registry.get_sample_value(f"kvatlas_router_{name}", labels)


async def explained(running: Running, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    """Ask the admin port what would be decided."""
    url = f"http://127.0.0.1:{running.admin_port}/explain"
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, json={"path": path, "body": body}) as reply,
    ):
        answer: dict[str, Any] = await reply.json()
        return answer


async def test_an_engine_that_agrees_is_told_so_before_readiness(redis_url: str) -> None:
    """Version, longest context and verdict are there once the router is ready."""
    async with simulated() as url, routed(router_settings([url], redis_url)) as (running, client):
        (endpoint,) = running.endpoints.all()
        facts = endpoint.facts
        assert (facts.tokenizer, facts.version, facts.serves) == ("agrees", (0, 32, 0), True)
        assert facts.max_model_len == 32_768
        assert (await explained(running, BODY))["fallback"] is None
        registry = running.metrics.registry
        assert sample(registry, "tokenizer_agrees", endpoint=endpoint.name) == 1
        assert sample(registry, "endpoint_serves_model", endpoint=endpoint.name) == 1
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 200


async def test_one_other_tokenizer_sends_the_model_by_load(redis_url: str, tmp_path: Path) -> None:
    """Loudly, without a word of the probes; token ids that a client brings are still matched."""
    with capture_logs() as logged:
        await by_load(redis_url, tmp_path)
    (told,) = [line for line in logged if line["event"] == "endpoint.tokenizer_differs"]
    assert told["log_level"] == "error"
    assert told["probes"]
    assert set(told) == {"log_level", "part", "event", "endpoint", "probes", "kinds", "answered"}


async def by_load(redis_url: str, tmp_path: Path) -> None:
    """Run two engines, one of them with another tokenizer."""
    async with (
        simulated() as good,
        simulated(tokenizer=other_tokenizer(tmp_path)) as bad,
        routed(router_settings([good, bad], redis_url)) as (running, client),
    ):
        assert verdicts(running) == ["agrees", "differs"]
        assert (await explained(running, BODY))["fallback"] == "prompt:tokenizer_differs"
        ids = {"model": "demo", "prompt": [1, 2, 3]}
        assert (await explained(running, ids, "/v1/completions"))["fallback"] is None
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 200
        registry = running.metrics.registry
        labels = {"stage": "prompt", "reason": "tokenizer_differs"}
        assert sample(registry, "fallbacks_total", **labels) == 1
        named = bad.removeprefix("http://")
        assert sample(registry, "tokenizer_agrees", endpoint=named) == 0


async def test_a_mended_engine_is_believed_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it differs it is asked again; a restart is noticed by the start of its process."""
    monkeypatch.setattr(limits, "PROBE_DIFFERS_S", 3_600.0)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(simulated(tokenizer=other_tokenizer(tmp_path)))
        async with routed(router_settings([url], redis_url)) as (running, _):
            assert verdicts(running) == ["differs"]
            await stack.aclose()
            async with simulated(port=int(url.rsplit(":", 1)[1])):
                await until(lambda: verdicts(running) == ["agrees"])
            assert not running.endpoints.distrusts(DEMO)


async def test_engines_that_take_turns_behind_one_address_are_asked_in_peace(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often another process answers, rounds of probes keep their distance."""
    monkeypatch.setattr(limits, "PROBE_REST_S", 0.5)
    starts = iter(range(1, 1_000))
    asked = []

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text=f"process_start_time_seconds {next(starts)}.0\n")

    async def tokenize(_request: web.Request) -> web.Response:
        asked.append(1)
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/tokenize", tokenize)
    async with (
        serving(app, "127.0.0.1", 0) as port,
        routed(router_settings([f"http://127.0.0.1:{port}"], redis_url)) as (running, _),
    ):
        (engine,) = running.endpoints.engines()
        await until(lambda: engine.lives > 20)
        assert 1 <= len(asked) <= engine.lives // 5


async def test_an_engine_that_differs_is_asked_slowly_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds go on while it differs."""
    monkeypatch.setattr(limits, "PROBE_DIFFERS_S", 0.1)
    async with (
        simulated(tokenizer=other_tokenizer(tmp_path)) as url,
        routed(router_settings([url], redis_url)) as (running, _),
    ):
        labels = {"endpoint": url.removeprefix("http://"), "outcome": "differs"}
        registry = running.metrics.registry
        await until(lambda: (sample(registry, "probes_total", **labels) or 0) >= 3)


async def test_an_engine_that_serves_another_model_gets_nothing(redis_url: str) -> None:
    """Even when it is idle and the other one is not; alone, it is no endpoint at all."""
    async with (
        simulated() as good,
        simulated(name="other") as bad,
        routed(router_settings([bad, good], redis_url)) as (running, client),
    ):
        assert [e.facts.serves for e in running.endpoints.all()] == [False, True]
        for _ in range(4):
            async with client.post(CHAT, json=BODY) as reply:
                assert reply.headers["x-kvatlas-endpoint"] == good.removeprefix("http://")
        assert not running.endpoints.distrusts(DEMO)
    async with (
        simulated(name="other") as bad,
        routed(router_settings([bad], redis_url)) as (_, client),
        client.post(CHAT, json=BODY) as reply,
    ):
        assert reply.status == 503


async def test_an_engine_that_cannot_be_asked_is_used_and_matched(redis_url: str) -> None:
    """No /tokenize and no list of models: its matches count, the verdict says why."""
    async with upstream(plain(b"{}")) as engine:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        async with routed(settings) as (running, client):
            (endpoint,) = running.endpoints.all()
            assert endpoint.facts.tokenizer == "unasked"
            assert (endpoint.facts.serves, endpoint.facts.asked) == (None, True)
            assert (await explained(running, BODY))["fallback"] is None
            async with client.post(CHAT, json=BODY) as reply:
                assert reply.status == 200


async def test_a_silent_engine_holds_readiness_up_no_longer_than_the_bound(redis_url: str) -> None:
    """It answers its metrics and nothing else."""
    forever = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /metrics"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        else:
            await forever.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = router_settings([f"http://127.0.0.1:{port}"], redis_url, probe_wait_s=0.3)
    async with router(settings) as running:
        await until(lambda: all(e.asked for e in running.endpoints.all()))
        assert running.readiness() == "not every engine has been asked for its models and token ids"
        await until(lambda: running.readiness() is None, 1.0)
        assert not running.prober.is_settled()
    forever.set()
    server.close()


async def test_an_engine_is_asked_a_dozen_times_when_it_joins_and_not_again(
    redis_url: str,
) -> None:
    """Once per address, however many ranks are behind it; the key goes along."""
    asked: list[bytes] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked.append(head)
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                body = b'{"tokens": [1]}' if b"/tokenize" in head else b"{}"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(counting, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = router_settings([url], redis_url)
    (endpoint,) = settings.endpoints
    ranks = endpoint.model_copy(update={"data_parallel_size": 3})
    settings = settings.model_copy(update={"endpoints": [ranks]})
    async with routed(settings) as (running, _):
        assert verdicts(running) == ["differs"] * 3
        await asyncio.sleep(0.3)
        questions = [head for head in asked if not head.startswith(b"GET /metrics")]
        assert len(questions) == 2 + 11
    server.close()


async def test_bodies_of_other_kinds_are_no_answer(redis_url: str) -> None:
    """What is no list of models or of token ids leaves an engine unasked, not wrong."""

    async def odd(exchange: Exchange) -> None:
        await plain(b'{"tokens": ["1"]}')(exchange)

    async with upstream(odd) as engine:
        engine.metrics_status = "500 Oops"
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        async with routed(settings) as (running, _):
            assert verdicts(running) == ["unasked"]


async def test_a_verdict_stays_until_there_is_another(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is too busy is asked again soon; one that differed does so meanwhile."""
    monkeypatch.setattr(limits, "PROBE_RETRY_S", 0.05)
    monkeypatch.setattr(limits, "PROBE_SLOWLY_S", 0.05)
    monkeypatch.setattr(limits, "PROBE_DIFFERS_S", 0.05)
    builder = PromptBuilder.load(ModelSettings(name="demo", tokenizer="demo"))
    modes = ["busy"]

    async def tokenize(request: web.Request) -> web.Response:
        body = await request.json()
        path = CHAT if "messages" in body else "/v1/completions"
        ids = list(builder.tokenize(builder.prepare(path, body)).sequences[0])
        if modes[-1] == "busy":
            return web.Response(status=503)
        return web.json_response({"tokens": ids if modes[-1] == "right" else [*ids, 1]})

    app = web.Application()
    app.router.add_post("/tokenize", tokenize)
    async with serving(app, "127.0.0.1", 0) as port:
        settings = router_settings([f"http://127.0.0.1:{port}"], redis_url)
        async with routed(settings) as (running, _):
            registry = running.metrics.registry
            labels = {"endpoint": f"127.0.0.1:{port}"}

            def rounds(outcome: str) -> float:
                return sample(registry, "probes_total", **labels, outcome=outcome) or 0.0

            assert verdicts(running) == ["unasked"]
            modes.append("wrong")
            await until(lambda: verdicts(running) == ["differs"])
            modes.append("busy")
            before = rounds("unasked")
            await until(lambda: rounds("unasked") >= before + 2)
            assert verdicts(running) == ["differs"]
            modes.append("right")
            await until(lambda: verdicts(running) == ["agrees"])
            agreed = rounds("agrees")
            await asyncio.sleep(0.3)
            assert rounds("agrees") == agreed == 1

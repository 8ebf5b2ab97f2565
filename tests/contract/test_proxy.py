"""The router's data path over real HTTP: bytes unchanged, failures visible, nothing leaked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange, Upstream, plain, upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"id": "x",  "choices": [] , "usage": null}'


def settings_for(ports: list[int], redis_url: str, **options: Any) -> Settings:
    """Configure a router for some engines."""
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
            "endpoints": [{"url": f"http://127.0.0.1:{port}", "model": "m"} for port in ports],
            "router": {
                "port": 0,
                "admin_port": 0,
                "debug_headers": True,
                "metrics_interval_s": 60,
                "pre_stop_s": 0,
                "drain_s": 2,
                **options,
            },
        }
    )


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """Run a router, and a client whose requests go to it."""
    async with (
        router(settings) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
    ):
        for _ in range(100):
            if running.readiness() is None:
                break
            await asyncio.sleep(0.01)
        yield running, client


@asynccontextmanager
async def one_engine(
    behaviour: Behaviour, redis_url: str, **options: Any
) -> AsyncIterator[tuple[Upstream, Running, aiohttp.ClientSession]]:
    """Run one engine behind a router."""
    async with upstream(behaviour) as engine:
        settings = settings_for([engine.port], redis_url, **options)
        async with routed(settings) as (running, client):
            yield engine, running, client


def in_flight(running: Running) -> tuple[int, int]:
    """Sum the requests and tokens that the router believes to be under way."""
    endpoints = list(running.endpoints.all())
    return sum(e.requests for e in endpoints), sum(e.queued_tokens for e in endpoints)


async def back_to_zero(running: Running) -> None:
    """Wait until nothing is under way."""
    for _ in range(100):
        if in_flight(running) == (0, 0):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(in_flight(running))


async def test_bodies_pass_unchanged_both_ways(redis_url: str) -> None:
    """White space, order, unknown fields and duplicate keys reach the engine as they were sent."""
    raw = (
        b'{ "model":"m","unknown" : [1e2, "\\u00e9"], "messages": [{"role":"user",'
        b'"content":"hi"}],\n "x": 1, "x": 2 }'
    )
    async with one_engine(plain(ANSWER), redis_url) as (engine, running, client):
        async with client.post(CHAT, data=raw) as reply:
            assert reply.status == 200
            assert await reply.read() == ANSWER
            assert reply.headers["x-kvatlas-endpoint"] == f"127.0.0.1:{engine.port}"
        assert engine.requests[0].body == raw
        await back_to_zero(running)


async def test_streams_pass_unchanged_however_they_are_cut(redis_url: str) -> None:
    """Events that are split inside of characters arrive byte for byte."""
    events = 'data: {"x": "ü🚀"}\n\ndata: [DONE]\n\n'.encode()

    async def slowly(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        for at in range(0, len(events), 3):
            await exchange.chunk(events[at : at + 3])
        await exchange.send(b"0\r\n\r\n")

    async with one_engine(slowly, redis_url) as (_, running, client):
        async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
            assert reply.content_type == "text/event-stream"
            assert await reply.read() == events
        await back_to_zero(running)


async def test_the_first_event_is_not_held_back(redis_url: str) -> None:
    """A piece is passed on when it comes, not when the next one does."""
    release = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: 1\n\n")
        await release.wait()
        await exchange.send(b"0\r\n\r\n")

    async with one_engine(waiting, redis_url) as (_, running, client):
        async with client.post(CHAT, json=BODY) as reply:
            assert await reply.content.readany() == b"data: 1\n\n"
            assert in_flight(running) == (1, 0)
            release.set()
            assert await reply.content.readany() == b""
        await back_to_zero(running)


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many", "500 Oops", "503 Busy"])
async def test_an_engines_refusal_is_the_answer(redis_url: str, status: str) -> None:
    """Status, body and headers pass; nothing is tried again."""
    behaviour = plain(b'{"error": 1}', status, b"Retry-After: 7", b"X-Own: yes")
    async with one_engine(behaviour, redis_url) as (engine, _, client):
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == int(status[:3])
            assert await reply.read() == b'{"error": 1}'
            assert reply.headers["Retry-After"] == "7"
            assert reply.headers["X-Own"] == "yes"
        assert len(engine.requests) == 1


async def test_headers_of_one_connection_stay_on_it(redis_url: str) -> None:
    """Hop-by-hop and nominated headers, and those that steer, reach nobody."""
    sent = {
        "Connection": "close, X-Secret",
        "X-Secret": "1",
        "TE": "trailers",
        "X-data-parallel-rank": "3",
        "x-gateway-destination-endpoint": "10.0.0.1:1",
        "x-kvatlas-endpoint": "10.0.0.1:1",
        "x-prefiller-host-port": "10.0.0.1:1",
        "X-Harmless": "kept",
        "X-Request-Id": "abc-1",
    }
    behaviour = plain(ANSWER, "200 OK", b"Connection: X-Inner", b"X-Inner: 1", b"Keep-Alive: 9")
    async with one_engine(behaviour, redis_url) as (engine, _, client):
        async with client.post(CHAT, json=BODY, headers=sent) as reply:
            assert reply.headers["X-Request-Id"] == "abc-1"
            assert "X-Inner" not in reply.headers
            assert "Keep-Alive" not in reply.headers
        head = engine.requests[0].head.lower()
    for name in ("x-secret", "te:", "rank", "destination", "kvatlas", "prefiller"):
        assert name.encode() not in head, name
    assert b"x-harmless: kept" in head
    assert b"x-request-id: abc-1" in head


async def test_an_engine_that_refuses_connections_is_passed_over(redis_url: str) -> None:
    """The request goes to the other one, once, and the client sees nothing of it."""
    async with upstream(plain(ANSWER)) as good:
        async with upstream(plain(ANSWER)) as gone:
            dead_port = gone.port
        settings = settings_for([dead_port, good.port], redis_url)
        async with routed(settings) as (running, client):
            for _ in range(6):
                async with client.post(CHAT, json=BODY) as reply:
                    assert reply.status == 200
                    assert reply.headers["x-kvatlas-endpoint"] == f"127.0.0.1:{good.port}"
            await back_to_zero(running)


async def test_nobody_to_reach_is_a_bad_gateway(redis_url: str) -> None:
    """After one retry the client is told, in OpenAI's shape."""
    async with upstream(plain(ANSWER)) as gone:
        dead_port = gone.port
    async with routed(settings_for([dead_port], redis_url)) as (running, client):
        assert running.readiness() is None
        for endpoint in running.endpoints.all():
            endpoint.standing.unanswered = 0
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 502
            assert (await reply.json())["error"]["code"] == "upstream_connect"
        # Once it is known that nobody answers, that is what is said.
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 503
            assert reply.headers["Retry-After"]
            assert (await reply.json())["error"]["code"] == "no_endpoints"
        await back_to_zero(running)


async def test_an_engine_without_metrics_is_alive(redis_url: str) -> None:
    """A page that is not there says nothing of its health."""
    async with upstream(plain(ANSWER)) as engine:
        engine.metrics_status = "404 Not Found"
        async with routed(settings_for([engine.port], redis_url)) as (running, client):
            assert running.readiness() is None
            assert all(endpoint.healthy for endpoint in running.endpoints.all())
            async with client.post(CHAT, json=BODY) as reply:
                assert reply.status == 200


async def test_a_model_without_endpoints_is_unavailable(redis_url: str) -> None:
    """503 with Retry-After."""
    async with (
        routed(settings_for([], redis_url)) as (_, client),
        client.post(CHAT, json=BODY) as reply,
    ):
        assert reply.status == 503
        assert reply.headers["Retry-After"]
        assert (await reply.json())["error"]["code"] == "no_endpoints"


async def test_a_reset_before_the_first_byte_is_tried_once_more(redis_url: str) -> None:
    """On the other engine; two resets are a bad gateway."""

    async def reset(exchange: Exchange) -> None:
        exchange.reset()
        raise ConnectionError

    async with upstream(reset) as one, upstream(reset) as two:
        settings = settings_for([one.port, two.port], redis_url)
        async with routed(settings) as (running, client):
            async with client.post(CHAT, json=BODY) as reply:
                assert reply.status == 502
            assert len(one.requests) == len(two.requests) == 1
            await back_to_zero(running)


async def test_silence_is_a_gateway_timeout(redis_url: str) -> None:
    """An engine that accepts and never answers; it is not asked twice."""
    forever = asyncio.Event()

    async def silent(_exchange: Exchange) -> None:
        await forever.wait()

    async with one_engine(silent, redis_url, first_byte_s=0.2) as (engine, running, client):
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 504
            assert (await reply.json())["error"]["code"] == "upstream_timeout"
        assert len(engine.requests) == 1
        await back_to_zero(running)
        forever.set()


async def test_what_is_not_http_is_a_bad_gateway(redis_url: str) -> None:
    """Garbage from an engine reaches no client."""

    async def garbage(exchange: Exchange) -> None:
        await exchange.send(b"\x00\x01 not http at all\r\n\r\n")
        exchange.reset()
        raise ConnectionError

    async with one_engine(garbage, redis_url) as (_, running, client):
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 502
        await back_to_zero(running)


async def test_a_stream_that_breaks_is_visibly_torn(redis_url: str) -> None:
    """The client gets an error event and no clean end."""

    async def broken(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        exchange.reset()
        raise ConnectionError

    async with one_engine(broken, redis_url) as (engine, running, client):
        received: list[bytes] = []
        async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
            assert reply.status == 200
            with pytest.raises(aiohttp.ClientError):
                await _read_into(received, reply)
        first, error, rest = b"".join(received).split(b"\n\n")
        assert first == b"data: 1"
        assert json.loads(error.removeprefix(b"data: "))["error"]["message"]
        assert rest == b""
        assert len(engine.requests) == 1
        await back_to_zero(running)


async def test_an_event_that_breaks_inside_gets_no_message_of_ours(redis_url: str) -> None:
    """Half an event would swallow it: the connection just breaks off."""

    async def broken(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b'data: {"a')
        await asyncio.sleep(0.05)
        exchange.reset()
        raise ConnectionError

    async with one_engine(broken, redis_url) as (_, _, client):
        received: list[bytes] = []
        async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
            with pytest.raises(aiohttp.ClientError):
                await _read_into(received, reply)
        assert b"".join(received) == b'data: {"a'


async def test_a_head_alone_is_no_first_byte(redis_url: str) -> None:
    """The prompt counts as pending until something of the answer comes."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow_prefill(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        begun.set()
        await release.wait()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.send(b"0\r\n\r\n")

    async with one_engine(slow_prefill, redis_url) as (_, running, client):
        asked = asyncio.create_task(client.post(CHAT, json={**BODY, "stream": True}))
        await begun.wait()
        await asyncio.sleep(0.05)
        requests, pending = in_flight(running)
        assert requests == 1
        assert pending > 0
        release.set()
        async with await asked as reply:
            assert await reply.read() == b"data: [DONE]\n\n"
        await back_to_zero(running)


async def test_a_break_behind_the_head_is_tried_once_more(redis_url: str) -> None:
    """As long as the client has seen nothing, another engine may answer."""

    async def head_only(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        exchange.reset()
        raise ConnectionError

    async with upstream(head_only) as one, upstream(head_only) as two:
        settings = settings_for([one.port, two.port], redis_url)
        async with (
            routed(settings) as (_, client),
            client.post(CHAT, json={**BODY, "stream": True}) as reply,
        ):
            assert reply.status == 502
        assert len(one.requests) == len(two.requests) == 1


async def test_explaining_takes_no_turn(redis_url: str) -> None:
    """Round robin goes on where the last request left it."""
    async with upstream(plain(ANSWER)) as one, upstream(plain(ANSWER)) as two:
        settings = settings_for([one.port, two.port], redis_url, policy="round-robin")
        async with routed(settings) as (running, client):
            url = f"http://127.0.0.1:{running.admin_port}/explain"
            for _ in range(4):
                async with client.post(url, json={"path": CHAT, "body": BODY}) as reply:
                    assert reply.status == 200
                async with client.post(CHAT, json=BODY) as reply:
                    assert reply.status == 200
        assert len(one.requests) == len(two.requests) == 2


async def test_each_rank_is_told_which_one_it_is(redis_url: str) -> None:
    """With data parallelism rank 0 is named too, else the engine would choose."""
    async with upstream(plain(ANSWER)) as engine:
        base = settings_for([engine.port], redis_url, policy="round-robin").model_dump()
        base["endpoints"][0]["data_parallel_size"] = 2
        async with routed(Settings.model_validate(base)) as (_, client):
            for _ in range(2):
                async with client.post(CHAT, json=BODY) as reply:
                    assert reply.status == 200
        heads = [exchange.head.lower() for exchange in engine.requests]
    assert sorted(b"x-data-parallel-rank: %d" % rank in heads[0] for rank in (0, 1)) == [0, 1]
    assert {rank for rank in (0, 1) if any(b"-rank: %d" % rank in h for h in heads)} == {0, 1}


async def test_a_stream_that_stalls_is_torn(redis_url: str) -> None:
    """No byte for too long ends it."""
    forever = asyncio.Event()

    async def stalling(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: 1\n\n")
        await forever.wait()

    async with one_engine(stalling, redis_url, stream_idle_s=0.2) as (_, running, client):
        with pytest.raises(aiohttp.ClientError):
            async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
                await reply.read()
        await back_to_zero(running)
        forever.set()


async def test_a_short_body_is_torn(redis_url: str) -> None:
    """Less than Content-Length promised is no complete answer."""

    async def short(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        exchange.reset()
        raise ConnectionError

    async with one_engine(short, redis_url) as (_, running, client):
        with pytest.raises(aiohttp.ClientError):
            async with client.post(CHAT, json=BODY) as reply:
                await reply.read()
        await back_to_zero(running)


async def test_a_client_that_leaves_takes_its_engine_along(redis_url: str) -> None:
    """The engine's connection is closed, so that it stops to generate."""
    left = asyncio.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        try:
            while True:
                await exchange.chunk(b"data: 1\n\n")
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.set()
            raise

    async with one_engine(endless, redis_url) as (_, running, client):
        reply = await client.post(CHAT, json={**BODY, "stream": True})
        await reply.content.readany()
        reply.close()
        await asyncio.wait_for(left.wait(), 5)
        await back_to_zero(running)
        # Not the engine's fault.
        assert "upstream_errors_total{" not in await _metrics(running)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_request_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'"text"', 400, "invalid_request_error"),
        (b"{", 400, "invalid_request_error"),
        (b"\xff\xfe{}", 400, "invalid_request_error"),
        (b'{"model": "m", "x": NaN}', 400, "invalid_request_error"),
        (b'{"model": "m", "x": "\\ud800"}', 400, "invalid_request_error"),
        (b"[" * 100_000, 400, "invalid_request_error"),
        (b"{}", 400, "invalid_request_error"),
        (b'{"model": 7}', 400, "invalid_request_error"),
        (b'{"model": "other"}', 404, "model_not_found"),
        (b'{"model": "m", "messages": "hi"}', 400, "invalid_request_error"),
        (b'{"model": "m", "messages": [1]}', 400, "invalid_request_error"),
    ],
)
async def test_bad_bodies(redis_url: str, body: bytes, status: int, code: str) -> None:
    """What is not a request gets a clear error and reaches no engine."""
    async with one_engine(plain(ANSWER), redis_url) as (engine, _, client):
        async with client.post(CHAT, data=body) as reply:
            assert reply.status == status
            error = (await reply.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
        assert engine.requests == []


async def test_bodies_are_bounded(redis_url: str) -> None:
    """By size, announced or not, by encoding, and by time."""
    options = {"body_bytes_max": 2_000, "body_read_s": 0.3}
    async with one_engine(plain(ANSWER), redis_url, **options) as (engine, running, client):

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b" " * 100

        async def stuck() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)

        async with client.post(CHAT, data=b" " * 3_000) as reply:
            assert reply.status == 413
        async with client.post(CHAT, data=pieces()) as reply:
            assert reply.status == 413
        gzip = {"Content-Encoding": "gzip"}
        async with client.post(CHAT, data=b"\x1f\x8b", headers=gzip) as reply:
            assert reply.status == 415
        async with client.post(CHAT, data=stuck()) as reply:
            assert reply.status == 408
        assert engine.requests == []
        await back_to_zero(running)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/unknown", 404),
        ("POST", "/reset_prefix_cache", 404),
        ("POST", "/sleep", 404),
        ("POST", "/v1/../collective_rpc", 404),
        ("POST", "/v1//chat/completions", 404),
        ("GET", "/metrics", 404),
        ("POST", "/explain", 404),
    ],
)
async def test_other_paths(redis_url: str, method: str, path: str, status: int) -> None:
    """Only what is served is there; engines' administrative paths and ours are not."""
    async with one_engine(plain(ANSWER), redis_url) as (engine, _, client):
        async with client.request(method, path, json=BODY) as reply:
            assert reply.status == status
            assert (await reply.json())["error"]["message"]
        assert engine.requests == []


async def test_limits_on_messages_mean_routing_by_load(redis_url: str) -> None:
    """More messages or characters than are matched are no error."""
    many = {"model": "m", "messages": [{"role": "user", "content": "x"}] * 2_500}
    async with one_engine(plain(ANSWER), redis_url) as (_, running, client):
        async with client.post(CHAT, json=many) as reply:
            assert reply.status == 200
            assert reply.headers["x-kvatlas-match-tokens"] == "0"
        text = await _metrics(running)
    assert 'kvatlas_router_fallbacks_total{reason="too_many_messages",stage="prompt"}' in text


async def test_a_template_in_the_body_is_not_rendered(redis_url: str) -> None:
    """It is forwarded for the engine to judge, and matched by nobody."""
    body = {**BODY, "chat_template": "{{ 1/0 }}"}
    async with one_engine(plain(ANSWER), redis_url) as (engine, _, client):
        async with client.post(CHAT, json=body) as reply:
            assert reply.status == 200
        assert json.loads(engine.requests[0].body) == body


async def test_explain_checks_what_it_gets(redis_url: str) -> None:
    """The same errors as on the public port, and for its own envelope."""
    async with one_engine(plain(ANSWER), redis_url) as (engine, running, client):
        url = f"http://127.0.0.1:{running.admin_port}/explain"
        for request, status in (
            ({"path": CHAT, "body": BODY}, 200),
            ({"path": "/v1/embeddings", "body": BODY}, 400),
            ({"path": CHAT, "body": []}, 400),
            ({"path": CHAT}, 400),
            ({"path": CHAT, "body": {"model": "other"}}, 404),
            ([], 400),
        ):
            async with client.post(url, json=request) as reply:
                assert reply.status == status, request
        assert engine.requests == []


async def test_a_drain_lets_streams_finish(redis_url: str) -> None:
    """Not ready at once, but what is under way goes on."""
    release = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: 1\n\n")
        await release.wait()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.send(b"0\r\n\r\n")

    async with one_engine(waiting, redis_url, pre_stop_s=0.5) as (_, running, client):
        async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
            await reply.content.readany()
            drained = asyncio.create_task(running.drain())
            await asyncio.sleep(0.05)
            assert not drained.done()
            async with client.get("/readyz") as ready:
                assert ready.status == 503
            release.set()
            assert await reply.read() == b"data: [DONE]\n\n"
        await asyncio.wait_for(drained, 5)


async def _read_into(received: list[bytes], reply: aiohttp.ClientResponse) -> None:
    """Read to the end, keeping what came before it breaks."""
    while piece := await reply.content.readany():
        received.append(piece)


async def _metrics(running: Running) -> str:
    url = f"http://127.0.0.1:{running.admin_port}/metrics"
    async with aiohttp.ClientSession() as client, client.get(url) as reply:
        return await reply.text()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "stream", "tools", "chat_template_kwargs", "cache_salt", "max_tokens"]
)


@pytest.mark.timeout(90)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans()), max_size=8))
def test_no_body_is_an_internal_error(
    redis_url: str, bodies: list[tuple[dict[str, Any], bool]]
) -> None:
    """Whatever JSON is sent: the engine's answer or a client error, never a 500."""

    async def run() -> None:
        async with one_engine(plain(ANSWER), redis_url) as (_, running, client):
            for fields, is_chat in bodies:
                path = CHAT if is_chat else "/v1/completions"
                async with client.post(path, json={"model": "m", **fields}) as reply:
                    assert reply.status in (200, 400)
            await back_to_zero(running)

    asyncio.run(run())

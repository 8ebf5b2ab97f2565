"""TLS to engines: only whom our CA vouches for is spoken to, and nothing is sent in clear."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.app import Running, router
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.render_service import RenderServices
from tests.fakes.authority import CLIENT, LOCALHOST, Authority
from tests.fakes.redis_servers import free_port
from tests.fakes.services import indexing
from tests.fakes.upstream import SSE_HEAD, Exchange, Upstream, plain, upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "canary"}]}
RARELY = {"port": 0, "admin_port": 0, "metrics_interval_s": 60}
ANSWER = b'{"id": "x",  "choices": [] , "usage": null}'


@dataclass(frozen=True)
class Keys:
    """A CA that is trusted, another one, and what they vouch for."""

    ours: Authority
    strangers: Authority
    engine: tuple[Path, Path]
    named: tuple[Path, Path]
    strange_engine: tuple[Path, Path]
    client: tuple[Path, Path]
    next_client: tuple[Path, Path]

    @property
    def tls(self) -> dict[str, Any]:
        """Give the settings that are right for an engine that asks."""
        cert, key = self.client
        return {"ca_file": self.ours.ca, "cert_file": cert, "key_file": key}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Make them."""
    folder = tmp_path_factory.mktemp("tls")
    ours, strangers = Authority(folder, "ours"), Authority(folder, "strangers")
    return Keys(
        ours,
        strangers,
        ours.issue("engine", LOCALHOST),
        ours.issue("named", "subjectAltName=DNS:engines.internal"),
        strangers.issue("engine", LOCALHOST),
        ours.issue("client", CLIENT),
        ours.issue("next", CLIENT),
    )


def shown(pair: tuple[Path, Path], asks: Authority | None = None) -> ssl.SSLContext:
    """Make an engine's context."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*pair)
    if asks is not None:
        context.load_verify_locations(asks.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def settings_for(urls: list[str], redis_url: str, **more: Any) -> Settings:
    """Configure a router and an indexer for engines."""
    model = {"name": "m", "tokenizer": str(demo_model_path()), **more.pop("model", {})}
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [model],
            "endpoints": [{"url": url, "model": "m"} for url in urls],
            "router": {"port": 0, "admin_port": 0, "metrics_interval_s": 0.05},
            "indexer": {"admin_port": 0, "metrics_interval_s": 0.05},
            **more,
        }
    )


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """Run a router that has looked at its engines, and a client of it."""
    async with (
        router(settings) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
    ):
        for _ in range(300):
            if running.readiness() is None:
                break
            await asyncio.sleep(0.01)
        yield running, client


def url_of(engine: Upstream) -> str:
    """Give the address as a configuration has it."""
    return f"https://127.0.0.1:{engine.port}"


async def asked(client: aiohttp.ClientSession) -> tuple[int, bytes]:
    """Send a chat."""
    async with client.post(CHAT, json=BODY) as reply:
        return reply.status, await reply.read()


def owner(exchange: Exchange) -> str:
    """Tell whose certificate came with a request."""
    peer: dict[str, Any] = exchange.writer.get_extra_info("peercert")
    return str(peer["subject"][0][0][1])


async def test_an_engine_that_asks_is_shown_our_certificate(keys: Keys, redis_url: str) -> None:
    """Requests, streams, looks and questions alike."""
    events = b'data: {"a": 1}\n\ndata: [DONE]\n\n'

    async def either(exchange: Exchange) -> None:
        if b'"stream"' not in exchange.body:
            await plain(ANSWER)(exchange)
            return
        await exchange.send(SSE_HEAD)
        for at in range(0, len(events), 5):
            await exchange.chunk(events[at : at + 5])
        await exchange.send(b"0\r\n\r\n")

    async with upstream(either, tls=shown(keys.engine, keys.ours)) as engine:
        settings = settings_for([url_of(engine)], redis_url, endpoint_tls=keys.tls)
        async with routed(settings) as (running, client):
            assert await asked(client) == (200, ANSWER)
            async with client.post(CHAT, json={**BODY, "stream": True}) as reply:
                assert await reply.read() == events
            (endpoint,) = running.endpoints.all()
            assert (endpoint.healthy, endpoint.block_size) == (True, 16)
            assert running.metrics.looks.labels("answered").value >= 1
        assert {owner(exchange) for exchange in engine.requests} == {"client"}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (("other CA", ssl.TLSVersion.TLSv1_2), "tls"),
        (("other CA", ssl.TLSVersion.TLSv1_3), "tls"),
        (("other name", ssl.TLSVersion.TLSv1_2), "tls"),
        (("other name", ssl.TLSVersion.TLSv1_3), "tls"),
        (("no certificate", ssl.TLSVersion.TLSv1_2), "tls"),
        # An engine in Python breaks off behind its handshake, without a word.
        (("no certificate", ssl.TLSVersion.TLSv1_3), "disconnected"),
        (("no TLS", ssl.TLSVersion.TLSv1_3), "connect_timeout"),
    ],
)
async def test_an_engine_that_cannot_be_trusted_any_more_is_passed_over(
    keys: Keys,
    redis_url: str,
    case: tuple[str, ssl.TLSVersion],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told apart, gets nothing, and the request goes to another engine."""
    monkeypatch.setattr(limits, "UPSTREAM_KEEPALIVE_S", 0.05)
    bad = bad_context(keys, *case)
    async with AsyncExitStack() as stack:
        port = free_port()
        good = await stack.enter_async_context(upstream(plain(ANSWER), tls=shown(keys.engine)))
        # Requests are to find it out, not looks.
        own = {**RARELY, "policy": "round-robin"}
        urls = [f"https://127.0.0.1:{port}", url_of(good)]
        tls = {"ca_file": keys.ours.ca}
        settings = settings_for(urls, redis_url, endpoint_tls=tls, router=own)
        async with upstream(plain(ANSWER), port, tls=shown(keys.engine)):
            running, client = await stack.enter_async_context(routed(settings))
            await until(lambda: all(each.facts.asked for each in running.endpoints.all()))
        await asyncio.sleep(0.2)
        async with upstream(plain(ANSWER), port, tls=bad) as turned:
            answers = [await asked(client) for _ in range(4)]
            assert answers == [(200, ANSWER)] * 4
            errors = running.metrics.upstream_errors.labels(f"127.0.0.1:{port}", kind)
            retries = running.metrics.retries.labels("m", "sent")
            assert errors.value == retries.value > 0
            assert turned.requests == []


@pytest.mark.parametrize("fault", ["other CA", "other name", "no certificate", "no TLS"])
async def test_an_engine_that_was_never_to_be_trusted_gets_nothing(
    keys: Keys, redis_url: str, fault: str
) -> None:
    """Where it is alone, the client is told that there is nobody."""
    bad = bad_context(keys, fault, ssl.TLSVersion.TLSv1_3)
    async with upstream(plain(ANSWER), tls=bad) as engine:
        tls = {"ca_file": keys.ours.ca}
        settings = settings_for([url_of(engine)], redis_url, endpoint_tls=tls)
        async with routed(settings) as (running, client):
            status, answer = await asked(client)
            (endpoint,) = running.endpoints.all()
            assert (status in {502, 503}, endpoint.block_size) == (True, None)
            assert b"canary" not in answer
        assert engine.requests == []


def bad_context(keys: Keys, fault: str, version: ssl.TLSVersion) -> ssl.SSLContext | None:
    """Make the context of an engine that cannot be trusted; None speaks HTTP."""
    contexts = {
        "other CA": shown(keys.strange_engine),
        "other name": shown(keys.named),
        "no certificate": shown(keys.engine, keys.ours),
    }
    context = contexts.get(fault)
    if context is not None:
        context.maximum_version = version
    return context


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(holds)


async def counted(settings: Settings, port: int) -> tuple[float, bool]:
    """Send a chat to one engine that refuses; count what is `tls`, tell whether it failed."""
    async with routed(settings) as (running, client):
        status, _ = await asked(client)
        errors = running.metrics.upstream_errors.labels(f"127.0.0.1:{port}", "tls")
        return errors.value, status in {502, 503}


async def test_an_engine_that_speaks_http_is_told_nothing_in_clear(
    keys: Keys, redis_url: str
) -> None:
    """It reads a greeting of TLS, and answers in HTTP as engines do: that is `tls`."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65_536))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nInvalid request.")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = settings_for(
        [f"https://127.0.0.1:{port}"],
        redis_url,
        endpoint_tls={"ca_file": keys.ours.ca},
        router=RARELY,
    )
    assert await counted(settings, port) == (2, True)
    server.close()
    assert {piece[:2] for piece in heard} == {b"\x16\x03"}
    assert all(b"canary" not in piece and b"POST" not in piece for piece in heard)


def refuse(server: socket.socket, context: ssl.SSLContext) -> None:
    """Refuse clients in the words of OpenSSL, until the socket is closed."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        # A handshake that fails closes the socket that it was given.
        with connection.dup() as kept:
            connection.settimeout(2)
            kept.settimeout(2)
            with suppress(OSError):
                context.wrap_socket(connection, server_side=True)
            with suppress(OSError):
                kept.shutdown(socket.SHUT_WR)
                # Bytes that nobody read would reset the connection, and the alert be lost.
                while kept.recv(65_536):
                    pass


async def test_a_refusal_that_is_told_behind_the_handshake_is_understood(
    keys: Keys, redis_url: str
) -> None:
    """Of TLS 1.3, by servers that send their alerts."""
    context = shown(keys.engine, keys.ours)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refusing = asyncio.create_task(asyncio.to_thread(refuse, server, context))
        settings = settings_for(
            [f"https://127.0.0.1:{port}"],
            redis_url,
            endpoint_tls={"ca_file": keys.ours.ca},
            router=RARELY,
        )
        try:
            assert await counted(settings, port) == (2, True)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            await refusing


async def test_a_certificate_may_be_for_another_name(keys: Keys, redis_url: str) -> None:
    """As one for all engines, which are reached by their addresses."""
    async with upstream(plain(ANSWER), tls=shown(keys.named)) as engine:
        tls = {"ca_file": keys.ours.ca, "server_name": "engines.internal"}
        settings = settings_for([url_of(engine)], redis_url, endpoint_tls=tls)
        async with routed(settings) as (_, client):
            assert await asked(client) == (200, ANSWER)


async def test_our_certificate_changes_under_load(
    keys: Keys, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New connections show the new one; no request fails."""
    monkeypatch.setattr(limits, "TLS_LOOK_S", 0.02)
    tls = {"cert_file": tmp_path / "c.crt", "key_file": tmp_path / "c.key"}

    def put(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, tls.values(), strict=True):
            shutil.copy(source, target)

    put(keys.client)
    async with upstream(plain(ANSWER), tls=shown(keys.engine, keys.ours)) as engine:
        endpoint_tls = {**tls, "ca_file": keys.ours.ca}
        settings = settings_for([url_of(engine)], redis_url, endpoint_tls=endpoint_tls)
        async with routed(settings) as (_, client):
            assert await asked(client) == (200, ANSWER)
            put(keys.next_client)
            for _ in range(500):
                assert await asked(client) == (200, ANSWER)
                if owner(engine.requests[-1]) == "next":
                    break
            assert owner(engine.requests[-1]) == "next"


async def test_an_indexer_looks_over_tls(keys: Keys, redis_url: str) -> None:
    """And tells all routers; its own port speaks TLS, too."""
    cert, key = keys.engine
    async with upstream(plain(ANSWER), tls=shown(keys.engine, keys.ours)) as engine:
        own = {"admin_port": 0, "admin_tls": {"cert_file": cert, "key_file": key}}
        settings = settings_for([url_of(engine)], redis_url, endpoint_tls=keys.tls, indexer=own)
        async with indexing(settings) as indexer:
            await until(lambda: indexer.metrics.scrapes.labels("answered").value >= 1)
            good = indexer.metrics.tls_good
            assert good.labels("indexer.admin_tls").value == 1
            assert good.labels("endpoint_tls").value == 1


async def test_an_indexer_keeps_what_it_has_when_a_change_cannot_be_used(
    keys: Keys, redis_url: str
) -> None:
    """It lives, looks on as before, and follows the next change."""
    async with upstream(plain(ANSWER), tls=shown(keys.engine, keys.ours)) as engine:
        good = settings_for([url_of(engine)], redis_url, endpoint_tls=keys.tls)
        bad = settings_for([url_of(engine)], redis_url, endpoint_tls={"ca_file": "/no/file"})
        other = settings_for([], redis_url)
        async with indexing(good) as indexer:
            answered = indexer.metrics.scrapes.labels("answered")
            await until(lambda: answered.value >= 1)
            with pytest.raises(ConfigError, match="ca_file: /no/file: No such file"):
                indexer._configure(bad)
            before = answered.value
            await until(lambda: answered.value > before)
            assert indexer.metrics.tls_good.labels("endpoint_tls").value == 1
            indexer._configure(other)
            (family,) = indexer.metrics.tls_good.collect()
            assert family.samples == []


async def test_a_render_service_is_spoken_to_alike(keys: Keys, redis_url: str) -> None:
    """With what is said for all endpoints."""
    async with upstream(plain(b'{"token_ids": [1]}'), tls=shown(keys.engine, keys.ours)) as service:
        settings = settings_for(
            [], redis_url, endpoint_tls=keys.tls, model={"render_url": url_of(service)}
        )
        async with aiohttp.ClientSession() as session:
            identities = EngineIdentities(settings, TlsGauges())
            services = RenderServices(settings.models, session, RouterMetrics(), identities)
            with pytest.raises(PromptUnavailable, match="render_answer"):
                await services.prompt(ModelName("m"), "/v1/completions", {"prompt": "a"}, 1.0)
    assert len(service.requests) == 1
    assert owner(service.requests[0]) == "client"

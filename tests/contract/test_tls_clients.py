"""TLS on our own ports: who is let in, what is spoken, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from kvatlas.common import limits
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from tests.fakes.authority import CLIENT, LOCALHOST, Authority
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange, Upstream, plain, upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"id": "x",  "choices": [] , "usage": null}'
SOON_S = 0.2


@dataclass(frozen=True)
class Keys:
    """A CA that is trusted, another one, and what they vouch for."""

    ours: Authority
    strangers: Authority
    server: tuple[Path, Path]
    next_server: tuple[Path, Path]
    client: tuple[Path, Path]
    strange_client: tuple[Path, Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Make them."""
    folder = tmp_path_factory.mktemp("tls")
    ours, strangers = Authority(folder, "ours"), Authority(folder, "strangers")
    return Keys(
        ours,
        strangers,
        ours.issue("server", LOCALHOST),
        ours.issue("next", LOCALHOST, days=9),
        ours.issue("client", CLIENT),
        strangers.issue("client", CLIENT),
    )


@dataclass
class Place:
    """A router whose ports speak TLS, with an engine behind it."""

    running: Running
    engine: Upstream
    folder: Path

    @property
    def url(self) -> str:
        """Give where clients ask."""
        return f"https://127.0.0.1:{self.running.port}"

    def put(self, pair: tuple[Path, Path]) -> None:
        """Replace the certificate and its key."""
        shutil.copy(pair[0], self.folder / "tls.crt")
        shutil.copy(pair[1], self.folder / "tls.key")

    def gauge(self, name: str, setting: str = "router.tls") -> float:
        """Read a gauge from the page."""
        page = generate_latest(self.running.metrics.registry).decode()
        start = f'kvatlas_router_{name}{{setting="{setting}"}} '
        (line,) = (line for line in page.splitlines() if line.startswith(start))
        return float(line.split()[-1])


@asynccontextmanager
async def serving(
    keys: Keys, folder: Path, redis_url: str, behaviour: Behaviour, **options: Any
) -> AsyncIterator[Place]:
    """Run a router with files of its own."""
    for path, name in zip(keys.server, ("tls.crt", "tls.key"), strict=True):
        shutil.copy(path, folder / name)
    tls = {"cert_file": folder / "tls.crt", "key_file": folder / "tls.key"}
    public = tls | options.pop("tls", {})
    async with upstream(behaviour) as engine:
        settings = Settings.model_validate(
            {
                "redis": {"url": redis_url},
                "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
                "endpoints": [{"url": f"http://127.0.0.1:{engine.port}", "model": "m"}],
                "router": {"port": 0, "admin_port": 0, "tls": public, "admin_tls": tls, **options},
            }
        )
        async with router(settings) as running:
            for _ in range(200):
                if running.readiness() is None:
                    break
                await asyncio.sleep(0.01)
            yield Place(running, engine, folder)


def trusting(authority: Authority, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """Make a client's context."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


async def asked(place: Place, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Send a chat on a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as client,
        client.post(place.url + CHAT, json=BODY) as reply,
    ):
        return reply.status, await reply.read()


async def subject(port: int, context: ssl.SSLContext) -> str:
    """Connect; give whom the other side says it is."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    with suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return str(shown["subject"][0][0][1])


def open_files() -> int:
    """Count what this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def closed_to(files: int) -> None:
    """Wait until no more is open than before."""
    for _ in range(300):
        if open_files() <= files:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(open_files(), files)


async def test_clients_are_answered_over_tls(keys: Keys, tmp_path: Path, redis_url: str) -> None:
    """Both ports; ALPN says http/1.1, whoever trusts another CA does not speak to us."""
    async with serving(keys, tmp_path, redis_url, plain(ANSWER)) as place:
        context = trusting(keys.ours)
        assert await asked(place, context) == (200, ANSWER)
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("127.0.0.1", place.running.port, ssl=context)
        spoken: ssl.SSLObject = writer.get_extra_info("ssl_object")
        assert (spoken.selected_alpn_protocol(), spoken.version()) == ("http/1.1", "TLSv1.3")
        writer.close()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await asked(place, trusting(keys.strangers))
        admin = f"https://127.0.0.1:{place.running.admin_port}/metrics"
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trusting(keys.ours))
            ) as client,
            client.get(admin) as reply,
        ):
            page = await reply.text()
        assert 'kvatlas_router_tls_certificates_good{setting="router.admin_tls"} 1.0' in page


async def test_old_versions_are_refused(keys: Keys, tmp_path: Path, redis_url: str) -> None:
    """The router says so itself; TLS 1.2 is spoken."""
    async with serving(keys, tmp_path, redis_url, plain(ANSWER)) as place:
        context = trusting(keys.ours)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await asked(place, context))[0] == 200
        old = aged(trusting(keys.ours))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await subject(place.running.port, old)
    lax = aged(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    lax.load_cert_chain(*keys.server)
    async with upstream(plain(ANSWER), tls=lax) as other:
        assert await subject(other.port, old) == "server", "this client does speak TLS 1.1"


def aged(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a context speak nothing newer than TLS 1.1."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_clients_show_certificates_where_they_are_asked_for(
    keys: Keys, tmp_path: Path, redis_url: str, version: ssl.TLSVersion
) -> None:
    """None, or one of another CA, is not enough; the engine hears of nobody but the right one."""
    asking = {"client_ca_file": keys.ours.ca}
    async with serving(keys, tmp_path, redis_url, plain(ANSWER), tls=asking) as place:

        async def refused(shown: tuple[Path, Path] | None) -> None:
            context = trusting(keys.ours, shown)
            context.maximum_version = version
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await asked(place, context)

        context = trusting(keys.ours, keys.client)
        context.maximum_version = version
        assert await asked(place, context) == (200, ANSWER)
        await refused(None)
        await refused(keys.strange_client)
        assert len(place.engine.requests) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_ca_that_is_taken_out_is_trusted_no_more(
    keys: Keys,
    tmp_path: Path,
    redis_url: str,
    version: ssl.TLSVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its clients cannot resume a session either."""
    monkeypatch.setattr(limits, "TLS_LOOK_S", 0.01)
    trusted = tmp_path / "clients.crt"
    shutil.copy(keys.ours.ca, trusted)
    asking = {"client_ca_file": trusted}
    async with serving(keys, tmp_path, redis_url, plain(ANSWER), tls=asking) as place:
        context = trusting(keys.ours, keys.client)
        context.maximum_version = version
        answered, session = await asyncio.to_thread(blocking_get, place.running.port, context, None)
        assert answered
        shutil.copy(keys.strangers.ca, trusted)
        stranger = trusting(keys.ours, keys.strange_client)
        async with asyncio.timeout(5):
            while True:
                with suppress(aiohttp.ClientError, ssl.SSLError):
                    assert (await asked(place, stranger))[0] == 200
                    break
                await asyncio.sleep(0.02)
        answered, _ = await asyncio.to_thread(blocking_get, place.running.port, context, session)
        assert not answered


def blocking_get(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """Ask whether the router is ready, resuming a session; tell whether it answered.

    Blocking, since of Python's only this kind of socket resumes sessions.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain_socket:
        try:
            with context.wrap_socket(
                plain_socket, server_hostname="127.0.0.1", session=session
            ) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200"), connection.session
        except (ssl.SSLError, ConnectionError):
            return False, None


async def test_streams_pass_unchanged_and_clients_that_leave_are_noticed(
    keys: Keys, tmp_path: Path, redis_url: str
) -> None:
    """Byte for byte through TLS; who closes its connection takes its engine's request along."""
    events = 'data: {"x": "ü🚀"}\n\n'.encode()

    async def endless(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        while True:
            await exchange.chunk(events)
            await asyncio.sleep(0.005)

    async with serving(keys, tmp_path, redis_url, endless) as place:
        connector = aiohttp.TCPConnector(ssl=trusting(keys.ours))
        async with aiohttp.ClientSession(connector=connector) as client:
            reply = await client.post(place.url + CHAT, json={**BODY, "stream": True})
            assert await reply.content.readexactly(3 * len(events)) == 3 * events
            reply.close()
            for _ in range(200):
                if place.engine.closed_early and not place.running.desk.open_requests:
                    break
                await asyncio.sleep(0.01)
        assert (place.engine.closed_early, place.running.desk.open_requests) == (1, 0)


async def test_a_torn_stream_is_visibly_torn(keys: Keys, tmp_path: Path, redis_url: str) -> None:
    """TLS, too, ends without its own goodbye counting as the end of the answer."""

    async def broken(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: {}\n\n")
        await asyncio.sleep(0.05)
        exchange.reset()

    async with serving(keys, tmp_path, redis_url, broken) as place:
        connector = aiohttp.TCPConnector(ssl=trusting(keys.ours))
        async with aiohttp.ClientSession(connector=connector) as client:
            reply = await client.post(place.url + CHAT, json={**BODY, "stream": True})
            with pytest.raises(aiohttp.ClientError):
                await reply.read()


async def test_certificates_change_under_load_without_a_failed_request(
    keys: Keys, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New connections are shown the new one; a key that does not fit changes nothing."""
    monkeypatch.setattr(limits, "TLS_LOOK_S", 0.02)
    context = trusting(keys.ours)
    async with serving(keys, tmp_path, redis_url, plain(ANSWER)) as place:
        statuses: list[int] = []
        stop = asyncio.Event()

        async def load(*, keeps: bool) -> None:
            connector = aiohttp.TCPConnector(ssl=context, force_close=not keeps)
            async with aiohttp.ClientSession(connector=connector) as client:
                while not stop.is_set():
                    async with client.post(place.url + CHAT, json=BODY) as reply:
                        assert await reply.read() == ANSWER
                        statuses.append(reply.status)

        async with asyncio.TaskGroup() as group:
            for keeps in (True, True, False, False):
                group.create_task(load(keeps=keeps))

            def is_good(number: float) -> Callable[[], Awaitable[bool]]:
                async def holds() -> bool:
                    return place.gauge("tls_certificates_good") == number

                return holds

            def shows(owner: str) -> Callable[[], Awaitable[bool]]:
                async def holds() -> bool:
                    return await subject(place.running.port, context) == owner

                return holds

            first_end = place.gauge("tls_not_after_seconds")
            assert await subject(place.running.port, context) == "server"
            (tmp_path / "tls.key").write_bytes(keys.next_server[1].read_bytes())
            await until(is_good(0.0))
            assert await subject(place.running.port, context) == "server"
            for pair, owner in ((keys.next_server, "next"), (keys.server, "server")) * 3:
                place.put(pair)
                await until(is_good(1.0))
                await until(shows(owner))
            assert place.gauge("tls_not_after_seconds") == first_end
            stop.set()
        assert len(statuses) > 50
        assert set(statuses) == {200}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    for _ in range(500):
        if await holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(holds)


async def heard(port: int, said: bytes) -> bytes:
    """Say something on a bare connection; give what comes until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    try:
        async with asyncio.timeout(3):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_who_does_not_speak_tls_is_let_go(
    keys: Keys,
    tmp_path: Path,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Plain HTTP is never answered; silence, and half a greeting, end at the deadline."""
    monkeypatch.setattr(limits, "TLS_HANDSHAKE_S", SOON_S)
    async with serving(keys, tmp_path, redis_url, plain(ANSWER)) as place:
        await asked(place, trusting(keys.ours))
        await asyncio.sleep(0.1)
        files = open_files()
        head = b"GET /readyz HTTP/1.1\r\nHost: canary\r\nAuthorization: Bearer canary\r\n\r\n"
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        for said in (head, b"", hello, b"\0" * 100) * 5:
            began = asyncio.get_running_loop().time()
            assert b"HTTP/" not in await heard(place.running.port, said)
            assert asyncio.get_running_loop().time() - began < SOON_S + 1.0
        await asyncio.gather(*(heard(place.running.port, b"") for _ in range(50)))
        await closed_to(files)
        assert await asked(place, trusting(keys.ours)) == (200, ANSWER)
        assert len(place.engine.requests) == 2
    told = capfd.readouterr()
    assert "canary" not in told.out + told.err
    assert "Traceback" not in told.out + told.err

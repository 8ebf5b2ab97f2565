"""C1 and C2, clients that leave, and clients that do not read: no engine works for nobody."""

from __future__ import annotations

import asyncio
import io
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvatlas.common import limits
from kvatlas.router.connection import Connection
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.engines import until
from tests.fakes.raw_client import Raw, get, post, raw
from tests.fakes.upstream import SSE_HEAD, Exchange, plain
from tests.fakes.upstream_fleet import UpstreamFleet, upstream_fleet

ROUNDS = 5
CANCELLED_S = 0.1
EVENT = b'data: {"id": "1"}\n\n'
PIECE = b"x" * 65_536
PUSHED_BYTES_MAX = 24 * 1024 * 1024
"""What kernels keep for two connections on loopback, and our own buffers."""
RSS_BYTES_MAX = 16 * 1024 * 1024
IDLE_S = 0.4


def asks(canary: Canary, *, stream: bool = False) -> bytes:
    """Write a request that holds the canary in its body and a header."""
    message = {"role": "user", "content": canary.text}
    return post({"model": "m", "messages": [message], "stream": stream}, f"X-S: {canary.text}")


class Watched:
    """An engine that begins an answer, or none, and sees when its client goes."""

    def __init__(self, begins: bytes) -> None:
        self._begins = begins
        self.gone_s: list[float] = []

    async def __call__(self, exchange: Exchange) -> None:
        """Answer for ever."""
        if self._begins:
            await exchange.send(SSE_HEAD)
            await exchange.chunk(self._begins)
        await exchange.reader.read()
        self.gone_s.append(time.monotonic())
        raise ConnectionError


async def _closes(client: Raw) -> None:
    client.writer.close()


async def _resets(client: Raw) -> None:
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.leave()


@pytest.mark.parametrize("leaves", [_closes, _resets])
@pytest.mark.parametrize("begins", [b"", EVENT])
async def test_c1_a_client_leaves(
    canary: Canary, log: io.StringIO, begins: bytes, leaves: Callable[[Raw], Awaitable[None]]
) -> None:
    """The engine sees it at once; what counts as under way is back at zero."""
    engine = Watched(begins)
    spent_s = []
    async with upstream_fleet([engine], canary, log) as place:
        for number in range(ROUNDS):
            async with raw(place.running.port) as client:
                await client.send(asks(canary, stream=bool(begins)))
                await until(lambda n=number: len(place.engines[0].requests) > n)  # type: ignore[misc]
                if begins:
                    assert (await client.head())[0] == 200
                    assert await client.chunk() == begins
                left_s = time.monotonic()
                await leaves(client)
                await until(lambda n=number: len(engine.gone_s) > n)  # type: ignore[misc]
                spent_s.append(engine.gone_s[number] - left_s)
        await until(place.nothing_is_under_way)
        status = "200" if begins else "499"
        await until(lambda: _finished(place, status) == ROUNDS)
        assert place.count("errors_total", model="m", reason="client_closed") == ROUNDS
        assert len(place.told("request.finished", outcome="client_closed")) == ROUNDS
        assert place.retries() == 0
        assert not place.running.inbound.connections
    assert statistics.median(spent_s) <= CANCELLED_S
    when = "during the stream" if begins else "before the first byte"
    seen = f"the engine sees it within {max(spent_s) * 1e3:.0f} ms; `client_closed`"
    Report("C1", f"a client {leaves.__name__[1:]} {when}", seen).tell()


async def test_c1_a_client_leaves_in_its_body(canary: Canary, log: io.StringIO) -> None:
    """No engine hears of it."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(asks(canary)[:-5])
            await until(lambda: place.running.desk.open_requests == 1)
        await until(lambda: len(place.told("request.finished", outcome="client_closed")) == 1)
        assert place.count("requests_total", model="unknown", path=CHAT, status="499") == 1
        assert place.engines[0].requests == []
    Report("C1", "a client leaves inside of its body", "`client_closed`, no engine is asked").tell()


async def test_c2_a_client_does_not_read(
    canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is held back, nothing piles up here, and then it is broken off."""
    monkeypatch.setattr(limits, "WRITE_IDLE_S", IDLE_S)
    pushed = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal pushed
        await exchange.send(SSE_HEAD)
        while True:
            await exchange.chunk(PIECE)
            pushed += len(PIECE)

    before = _rss()
    async with upstream_fleet([flood], canary, log) as place, raw(place.running.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(asks(canary, stream=True))
        began = time.monotonic()
        await until(lambda: place.count("connections_cut", reason="unread") == 1)
        spent_s = time.monotonic() - began
        grown = _rss() - before
        await until(lambda: place.engines[0].closed_early == 1)
        assert place.told("request.finished", outcome="client_closed")
    assert pushed < PUSHED_BYTES_MAX
    assert grown < RSS_BYTES_MAX
    assert spent_s >= IDLE_S
    told = f"the engine sent {pushed >> 20} MB, memory grew by {max(0, grown) >> 20} MB; broken off"
    Report("C2", "a client of an endless stream does not read", told).tell()


async def test_c2_a_client_that_reads_slowly_gets_it_all(
    canary: Canary, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes progress has time, however large the answer."""
    monkeypatch.setattr(limits, "WRITE_IDLE_S", IDLE_S)
    content = b"y" * (12 * 1024 * 1024)
    async with upstream_fleet([plain(content)], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(asks(canary))
            status, headers = await client.head()
            assert (status, headers["content-length"]) == (200, str(len(content)))
            received, began = 0, time.monotonic()
            while received < len(content):
                piece = await client.reader.read(512 * 1024)
                assert piece, received
                received += len(piece)
                await asyncio.sleep(0.02)
            assert time.monotonic() - began > 2 * IDLE_S
        assert place.count("connections_cut", reason="unread") == 0
    Report("C2", "a client reads 12 MB slowly", "it gets them, past the limit of idle time").tell()


async def test_c2_answers_that_nobody_reads_do_not_pile_up(
    canary: Canary, log: io.StringIO
) -> None:
    """Who sends requests ahead and reads nothing is not answered on; later all come in order."""
    count = 2_000
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(get("/openapi.json"))
            (connection,) = place.running.inbound.connections
            assert isinstance(connection, Connection)
            most = sent = 0
            while sent < count and connection._reads:
                await client.send(get("/openapi.json"))
                sent += 1
                await asyncio.sleep(0.001)
                most = max(most, connection._transport.get_write_buffer_size())
            assert sent < count
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            first = (await client.reply()).body
            for _ in range(sent):
                assert (await client.reply()).body == first
        assert most < 65_536 + 3 * len(first)
    told = f"reading stops after {sent}; all answers come when they are read"
    Report("C2", "requests are sent ahead, answers not read", told).tell()


CHAT = "/v1/chat/completions"


def _finished(place: UpstreamFleet, status: str) -> float:
    return place.count("requests_total", model="m", path=CHAT, status=status)


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096

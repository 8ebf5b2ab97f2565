"""C3 and C4, clients that hold connections: slow heads, slow bodies, idle crowds."""

from __future__ import annotations

import asyncio
import io
import resource
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale
from tests.fakes.engines import until
from tests.fakes.raw_client import Raw, get, post, raw
from tests.fakes.upstream import plain
from tests.fakes.upstream_fleet import GOOD, upstream_fleet

HEAD_S = 0.3
BODY_S = 0.3
LATE_S = 3.0
BEAT_S = 0.05
CROWD = {False: 200, True: 8_000}
OVER = 40


async def _trickle(client: Raw, content: bytes) -> float:
    """Send a byte at a time until the router closes; give the seconds."""
    began = time.monotonic()
    ended = asyncio.ensure_future(client.reader.read())
    for at in range(len(content)):
        if ended.done():
            break
        client.writer.write(content[at : at + 1])
        await asyncio.sleep(BEAT_S)
    with suppress(ConnectionError):
        await ended
    return time.monotonic() - began


@pytest.mark.parametrize(
    "sent",
    [
        ("nothing", b"", b""),
        ("a head byte by byte", b"", get("/readyz", "X-A: " + "a" * 200)),
        ("a later head byte by byte", get("/readyz"), get("/readyz", "X-A: " + "a" * 200)),
        ("empty lines for ever", b"", b"\r\n" * 200),
        ("half a head", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A", b""),
    ],
)
async def test_c3_a_slow_head_is_cut(
    canary: Canary,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    sent: tuple[str, bytes, bytes],
) -> None:
    """The time counts from its first byte on, whatever comes between."""
    what, first, slow = sent
    monkeypatch.setattr(limits, "HEAD_READ_S", HEAD_S)
    async with upstream_fleet([GOOD], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(first)
            if first.endswith(b"\r\n\r\n"):
                assert (await client.reply()).status == 200
            spent_s = await _trickle(client, slow)
        assert HEAD_S * 0.9 <= spent_s < LATE_S
        assert place.count("connections_cut", reason="head") == 1
        assert not place.running.inbound.connections
        assert place.engines[0].requests == []
    Report("C3", f"a client sends {what}", f"cut after {spent_s:.1f} s (told: {HEAD_S})").tell()


@pytest.mark.parametrize("framing", [None, "Transfer-Encoding: chunked"])
async def test_c3_a_slow_body_is_408(canary: Canary, log: io.StringIO, framing: str | None) -> None:
    """The budget is for all of it; the answer comes, and then the connection is closed."""
    whole = post(b"5\r\nabcde\r\n" * 40 if framing else None, framing=framing)
    head, _, body = whole.partition(b"\r\n\r\n")
    async with upstream_fleet([GOOD], canary, log, body_read_s=BODY_S) as place:
        async with raw(place.running.port) as client:
            await client.send(head + b"\r\n\r\n")
            began = time.monotonic()
            answered = asyncio.ensure_future(client.reply())
            for at in range(len(body)):
                if answered.done():
                    break
                client.writer.write(body[at : at + 1])
                await asyncio.sleep(BEAT_S)
            reply = await answered
            spent_s = time.monotonic() - began
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert reply.error["code"] == "request_timeout"
            assert await client.ended() == b""
        assert BODY_S * 0.9 <= spent_s < LATE_S
        assert place.count("errors_total", model="unknown", reason="request_timeout") == 1
        assert place.told("request.finished", status=408, outcome="request_timeout")
        assert place.engines[0].requests == []
    how = "in chunks" if framing else "with a length"
    Report("C3", f"a body {how} byte by byte", f"408 after {spent_s:.1f} s (told: {BODY_S})").tell()


@pytest.fixture
def all_files() -> Iterator[None]:
    """Open as many files as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("all_files")
async def test_c4_idle_connections_are_bounded(
    canary: Canary, log: io.StringIO, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those inside are served; those above are told so and closed; files are as many as both."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(CROWD[scale.is_full], (files - 2 * limits.FILES_KEPT) // 2)
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", most)
    async with upstream_fleet([plain(b"{}")], canary, log) as place, AsyncExitStack() as stack:
        port, inbound = place.running.port, place.running.inbound
        assert inbound.connections_max == most
        before = _files()
        crowd = [await stack.enter_async_context(raw(port)) for _ in range(most)]
        await until(lambda: len(inbound.connections) == most)
        for _ in range(OVER):
            async with raw(port) as client:
                reply = await client.reply()
                assert (reply.status, reply.headers["connection"]) == (503, "close")
                assert reply.error["code"] == "too_many_connections"
                assert await client.ended() == b""
        assert _files() - before <= 2 * most + 8
        assert place.count("connections") == most
        assert place.count("connections_refused") == OVER
        for client in (crowd[0], crowd[-1]):
            await client.send(post())
            assert (await client.reply()).status == 200
        crowd[0].leave()
        await until(lambda: len(inbound.connections) == most - 1)
        async with raw(port) as client:
            await client.send(get("/readyz"))
            assert (await client.reply()).status == 200
        await stack.aclose()
        await until(lambda: place.count("connections") == 0)
    told = f"503 for each above {most}; those inside are served, files stay bounded"
    Report("C4", f"{most + OVER} connections that are idle", told).tell()


async def test_c4_no_more_are_let_in_than_there_are_files_for(
    canary: Canary, log: io.StringIO
) -> None:
    """Each may need one of an engine's, and something must be left for everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = limits.FILES_KEPT + 100
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        async with upstream_fleet([GOOD], canary, log) as place:
            assert place.running.inbound.connections_max == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    Report("C4", f"a limit of {low} open files", "50 connections of clients").tell()


def _files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

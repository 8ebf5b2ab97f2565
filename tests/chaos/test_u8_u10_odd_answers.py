"""U8 to U10, engines refuse, answer what is not HTTP, or do not wait for the request's end."""

from __future__ import annotations

import asyncio
import io

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.upstream import Behaviour, Exchange, plain
from tests.fakes.upstream_fleet import ANSWER, GOOD, reset, upstream_fleet

BUSY_BODY = b'{"error": {"message": "full"}}'
BUSY = plain(BUSY_BODY, "503 Busy", b"Retry-After: 7")
UPLOAD_BYTES = 50 * 1024 * 1024
EARLY_S = 2.0


@pytest.mark.parametrize("status", ["400 Bad", "429 Too Many", "500 Oops", "501 No"])
async def test_u8_an_engines_answer_is_the_answer(
    canary: Canary, log: io.StringIO, status: str
) -> None:
    """Whatever it says, with its body and headers; nobody else is asked."""
    behaviour = plain(BUSY_BODY, status, b"Retry-After: 7")
    async with upstream_fleet([behaviour, behaviour], canary, log) as place:
        seen = await place.ask()
        assert (seen.status, seen.body) == (int(status[:3]), BUSY_BODY)
        assert seen.headers["Retry-After"] == "7"
        assert sum(len(engine.requests) for engine in place.engines) == 1
    Report("U8", status, "passed on unchanged, not retried").tell()


async def test_u8_a_503_is_tried_elsewhere_once(canary: Canary, log: io.StringIO) -> None:
    """Another one's answer counts, whatever it is; without one its own."""
    async with upstream_fleet([BUSY, GOOD], canary, log) as place:
        assert {(await place.ask()).body for _ in range(4)} == {ANSWER}
        assert place.retries() == 2
    for others in ([], [BUSY], [BUSY, BUSY], [reset]):
        async with upstream_fleet([BUSY, *others], canary, log) as place:
            seen = await place.ask()
            assert (seen.status, seen.body) == (503, BUSY_BODY)
            assert seen.headers["Retry-After"] == "7"
            assert sum(len(e.requests) for e in place.engines) == min(2, 1 + len(others))
            assert place.told("request.finished", status=503, outcome="answered")
    Report("U8", "503", "tried elsewhere once, else passed on unchanged").tell()


def raw(answer: bytes) -> Behaviour:
    """Write bytes and close."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(answer)
        exchange.writer.close()
        raise ConnectionError

    return behave


OK = b"HTTP/1.1 200 OK\r\n"
GARBAGE = {
    "no HTTP": b"\x00\x01 not http at all\r\n\r\n",
    "20 KB of head": OK + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    "200 headers of 100 bytes": OK
    + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 100) for i in range(200)),
    "Content-Length and Transfer-Encoding": (
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_u9_what_is_not_http_is_a_502(canary: Canary, log: io.StringIO, what: str) -> None:
    """Nothing of it reaches the client, and the connection is not used again."""
    async with upstream_fleet([raw(GARBAGE[what])], canary, log) as place:
        seen = await place.ask()
        assert (seen.status, seen.code) == (502, "upstream_protocol")
        assert place.errors(0, "protocol") == 1
        assert (len(place.engines[0].requests), place.retries()) == (1, 0)
    Report("U9", what, "502 upstream_protocol").tell()


async def test_u9_a_short_body_is_torn(canary: Canary, log: io.StringIO) -> None:
    """Less than its length promised is no answer."""
    behaviour = raw(OK + b"Content-Length: 100\r\n\r\nabc")
    async with upstream_fleet([behaviour], canary, log) as place:
        seen = await place.ask()
        assert (seen.status, seen.body, seen.is_torn) == (200, b"abc", True)
    Report("U9", "less than Content-Length", "torn").tell()


async def test_u9_what_comes_behind_an_answer_is_nobodys(canary: Canary, log: io.StringIO) -> None:
    """A second answer to one request is not the next one's."""
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER

    async def twice(exchange: Exchange) -> None:
        await exchange.send(answer + answer.replace(b"choices", b"smuggle"))

    async with upstream_fleet([twice], canary, log) as place:
        for _ in range(3):
            seen = await place.ask(), *await asyncio.gather(*(place.ask() for _ in range(4)))
            assert {each.body for each in seen} == {ANSWER}
            assert place.running.pool.under_way == 0
    Report("U9", "two answers to one request", "the second reaches nobody").tell()


@pytest.mark.parametrize("is_polite", [True, False], ids=["waits", "closes"])
async def test_u10_an_early_refusal_stops_the_upload(
    canary: Canary, log: io.StringIO, *, is_polite: bool
) -> None:
    """The client has the 413 while most of 50 MB is unsent; the rest is not sent."""
    took, ended = 0, asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal took
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif b"POST /v1/chat" in head:
            took = len(await reader.read(65_536))
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            while is_polite and (more := await reader.read(65_536)):
                took += len(more)
                await asyncio.sleep(0.005)  # an engine that reads on, slowly
            ended.set()
        else:
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    most = 2 * UPLOAD_BYTES
    try:
        async with upstream_fleet(
            [], canary, log, before=[address], body_bytes_max=most, held_bytes_max=2 * most
        ) as place:
            seen = await place.ask(filler="x" * UPLOAD_BYTES)
            assert (seen.status, seen.body) == (413, b"{}")
            assert seen.seconds < EARLY_S
            await asyncio.wait_for(ended.wait(), 2)
            assert took < UPLOAD_BYTES / 2
    finally:
        server.close()
    Report(
        "U10",
        f"413 after 64 KB of 50 MB; the engine {'reads on' if is_polite else 'closes'}",
        "the client has it in time, the upload stops",
    ).tell()

"""C13 and C14: requests in order or not at all, and streams as they were cut."""

from __future__ import annotations

import asyncio
import io
import json
import random

import pytest

from kvatlas.common import limits
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.raw_client import CHAT, chunked, get, post, raw
from tests.fakes.upstream import SSE_HEAD, Exchange, plain
from tests.fakes.upstream_fleet import upstream_fleet

CHUNKED = "Transfer-Encoding: chunked"
COUNT = 12
SMUGGLED = post({**CHAT, "smuggled": True})
OFFERS = {
    "websocket": ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AA=="],
    "h2c": ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"],
    "TLS": ["Upgrade: TLS/1.2", "Connection: upgrade"],
}
METHODS = ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "GET"]
EVENTS = (
    'data: {"choices": [{"delta": {"content": "ü🚀\\ud83d"}}]}\n\n'
    ": comment\r\n\r\ndata: a\rdata:b\n\nevent: x\nid: 1\ndata\n\n"
    'data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\ndata: [DONE]\n\n'
).encode() + b"data: \xff\xfe\x00 no UTF-8\n\n"


async def echo(exchange: Exchange) -> None:
    """Answer with the number of the request; the first takes longest."""
    number = json.loads(exchange.body).get("user", "none")
    await asyncio.sleep(0.02 if number == "0" else 0)
    body = json.dumps({"number": number}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await exchange.send(head % len(body) + body)


def numbered(number: int) -> bytes:
    """Write a request with a number, in one framing or the other."""
    body = {**CHAT, "user": str(number)}
    if number % 2:
        return post(body)
    return post(chunked(json.dumps(body).encode()), framing=CHUNKED)


@pytest.mark.parametrize("seed", range(3))
async def test_c13_requests_sent_ahead_are_answered_in_order(
    canary: Canary, log: io.StringIO, seed: int
) -> None:
    """However their bytes are cut."""
    chance = random.Random(seed)
    content = b"".join(map(numbered, range(COUNT)))
    cuts = sorted(chance.sample(range(1, len(content)), 3 * seed))
    async with upstream_fleet([echo], canary, log) as place:
        async with raw(place.running.port) as client:
            for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
                await client.send(content[start:end])
                await asyncio.sleep(0.001)
            for number in range(COUNT):
                reply = await client.reply()
                assert json.loads(reply.body) == {"number": str(number)}
        assert len(place.engines[0].requests) == COUNT
    Report("C13", f"{COUNT} requests sent ahead, cut {3 * seed} times", "in order").tell()


async def test_c13_too_many_requests_sent_ahead(canary: Canary, log: io.StringIO) -> None:
    """Those that fit are answered, and the connection ends with a 400."""
    async with upstream_fleet([echo], canary, log) as place, raw(place.running.port) as client:
        await client.send(post() * (limits.PIPELINED_MAX + 20))
        statuses = [(await client.reply()).status for _ in range(limits.PIPELINED_MAX + 1)]
        assert statuses == [200] * limits.PIPELINED_MAX + [400]
        assert await client.ended() == b""
    Report("C13", "36 requests sent ahead", "16 are answered, then 400, closed").tell()


async def test_c13_other_methods_are_405_and_the_connection_goes_on(
    canary: Canary, log: io.StringIO
) -> None:
    """With what is allowed; HEAD gets no body, so that the next answer is where it should be."""
    async with upstream_fleet([echo], canary, log) as place, raw(place.running.port) as client:
        for method in METHODS:
            for path in ("/v1/chat/completions", "/v1/models", "/nothing"):
                await client.send(get(path, method=method) + get("/readyz"))
                reply = await client.reply(to_head=method == "HEAD")
                served = method == "GET" and path == "/v1/models"
                wanted = 200 if served else 404 if path == "/nothing" else 405
                assert reply.status == wanted, (method, path)
                if wanted == 405:
                    assert reply.headers["allow"] in ("GET", "POST")
                assert (await client.reply()).status == 200
        await client.send(get("*", method="OPTIONS"))
        assert (await client.reply()).status == 404
        await client.send(get("x:80", method="CONNECT") + SMUGGLED)
        reply = await client.reply()
        assert (reply.status, reply.headers["allow"]) == (405, "GET, POST")
        assert await client.ended() == b""
        assert place.engines[0].requests == []
    Report("C13", f"{', '.join(METHODS)}, CONNECT", "405 with Allow; CONNECT closes").tell()


@pytest.mark.parametrize("offer", OFFERS)
async def test_c13_no_offer_of_another_protocol_is_taken(
    canary: Canary, log: io.StringIO, offer: str
) -> None:
    """The request is served as it is, its body too, and what stands behind it in order."""
    lines = OFFERS[offer]
    hidden = json.dumps(CHAT).encode()
    async with upstream_fleet([echo], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(get("/readyz", *lines) + numbered(1))
            assert (await client.reply()).status == 200
            assert json.loads((await client.reply()).body) == {"number": "1"}
            await client.send(post({**CHAT, "user": "2"}, *lines) + numbered(3))
            assert json.loads((await client.reply()).body) == {"number": "2"}
            assert json.loads((await client.reply()).body) == {"number": "3"}
            await client.send(post(chunked(hidden), *lines, framing=CHUNKED) + numbered(4))
            assert json.loads((await client.reply()).body) == {"number": "none"}
            assert json.loads((await client.reply()).body) == {"number": "4"}
            closing = [*lines, "Connection: close"]
            await client.send(post(None, *closing) + SMUGGLED)
            assert (await client.reply()).status == 200
            assert await client.ended() == b""
        heads = b"".join(each.head for each in place.engines[0].requests).lower()
        for word in (b"upgrade", b"http2-settings"):
            assert word not in heads
        assert not any(b"smuggled" in each.body for each in place.engines[0].requests)
    Report("C13", f"an offer of {offer}", "served as HTTP/1.1, in order, with its body").tell()


async def test_c13_a_connection_goes_on_behind_errors(canary: Canary, log: io.StringIO) -> None:
    """Where the request was read to its end."""
    bad = [
        (post(path="/nothing"), 404),
        (post(b"{"), 400),
        (post({"model": "none"}), 404),
        (post(None, "Content-Encoding: gzip"), 415),
        (get("/v1/chat/completions"), 405),
        (get("/readyz", "Content-Length: 5") + b"hello", 200),
    ]
    async with upstream_fleet([echo], canary, log) as place, raw(place.running.port) as client:
        for number, (content, status) in enumerate(bad):
            await client.send(content + numbered(number))
            assert (await client.reply()).status == status
            assert json.loads((await client.reply()).body) == {"number": str(number)}
    Report("C13", f"{len(bad)} errors on one connection", "requests behind them are served").tell()


@pytest.mark.parametrize(
    "start",
    [
        post(b"", path="/nothing", framing=f"Content-Length: {len(SMUGGLED)}"),
        post(b"", path="/nothing", framing=CHUNKED),
        get("/readyz", f"Content-Length: {len(SMUGGLED)}"),
        get("/readyz", "Connection: close"),
        post(None, "Connection: close"),
        post().replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ],
)
async def test_c13_what_stands_behind_the_end_is_no_request(
    canary: Canary, log: io.StringIO, start: bytes
) -> None:
    """A body that nobody read, and bytes behind a close: the connection ends with the answer."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        for pause_s in (0.0, 0.05):
            async with raw(place.running.port) as client:
                await client.send(start)
                await asyncio.sleep(pause_s)
                client.writer.write(SMUGGLED)
                reply = await client.reply()
                assert reply.status in (200, 404)
                if reply.headers.get("connection") == "close":
                    assert await client.ended() == b""
                    continue
                # It came in one read with its head, and was taken for the body that it is.
                assert f"Content-Length: {len(SMUGGLED)}".encode() in start
                await client.send(get("/readyz"))
                assert json.loads((await client.reply()).body) == {"status": "ready"}
        assert not any(b"smuggled" in each.body for each in place.engines[0].requests)
    Report("C13", "a request where a body or nothing should be", "it is not served").tell()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_c14_a_stream_passes_as_it_was_cut(
    canary: Canary, log: io.StringIO, size: int
) -> None:
    """Each piece leaves before the next comes, inside of characters and lines; none is merged."""
    slices = [EVENTS[at : at + size] for at in range(0, len(EVENTS), size)]
    arrived = asyncio.Semaphore(0)

    async def sliced(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        for each in slices:
            await exchange.chunk(each)
            async with asyncio.timeout(5):
                await arrived.acquire()
        await exchange.send(b"0\r\n\r\n")

    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with upstream_fleet([sliced], canary, log) as place, raw(place.running.port) as client:
        await client.send(post(body))
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        pieces = []
        while piece := await client.chunk():
            pieces.append(piece)
            arrived.release()
        assert pieces == slices
    Report("C14", f"a stream in pieces of {size} bytes", "each passes at once, as it is").tell()


async def test_c14_pieces_that_come_together_stay_apart(canary: Canary, log: io.StringIO) -> None:
    """One read of many chunks is as many writes: an engine's framing is the client's."""
    slices = [bytes([each]) for each in EVENTS]

    async def at_once(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD + chunked(*slices))

    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with upstream_fleet([at_once], canary, log) as place, raw(place.running.port) as client:
        await client.send(post(body))
        reply = await client.reply()
        assert reply.body == EVENTS
        assert list(reply.pieces) == slices
    Report("C14", "bytes as chunks in one read", "in order, none merged").tell()


async def test_c14_only_the_usage_that_we_asked_for_is_taken_out(
    canary: Canary, log: io.StringIO
) -> None:
    """All else is there, byte for byte, whatever the cut."""
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\n'

    async def sliced(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD + chunked(*(bytes([each]) for each in EVENTS)))

    async with upstream_fleet([sliced], canary, log) as place, raw(place.running.port) as client:
        await client.send(post({**CHAT, "stream": True}))
        reply = await client.reply()
        asked = b"include_usage" in place.engines[0].requests[0].body
        assert reply.body == (EVENTS.replace(usage, b"") if asked else EVENTS)
    Report("C14", "a stream whose usage is our own question", "all else byte for byte").tell()

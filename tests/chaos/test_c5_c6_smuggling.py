"""C5 and C6, heads and bodies that two readers might read differently, or that are too much."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.engines import until
from tests.fakes.raw_client import chunked, get, post, raw
from tests.fakes.upstream import plain
from tests.fakes.upstream_fleet import upstream_fleet

CHUNKED = "Transfer-Encoding: chunked"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
LENGTH = f"Content-Length: {len(BODY)}"
IN_CHUNKS = chunked(BODY)
SMUGGLED = get("/readyz")
BODY_S = 0.5
BODY_BYTES_MAX = 4_096

HEADS: dict[str, bytes] = {
    "a header of 17 KB": post(BODY, "X-A: " + "a" * 17_000),
    "a header of 200 KB": post(BODY, "X-A: " + "a" * 200_000),
    "200 headers": post(BODY, *[f"X-{n}: 1" for n in range(200)]),
    "1,000 headers": post(BODY, *[f"X-{n}: 1" for n in range(1_000)]),
    "a target of 17 KB": post(BODY, path="/v1/chat/completions?" + "a" * 17_000),
    "a bare LF": post(BODY).replace(b"\r\n", b"\n", 1),
    "bare LFs only": post(BODY).replace(b"\r\n", b"\n"),
    "a bare CR": post(BODY, "X-A: a\rb"),
    "a folded line": post(BODY, "X-A: 1\r\n 2"),
    "a line folded by a tab": post(BODY, "X-A: 1\r\n\t2"),
    "NUL in a value": post(BODY, "X-A: a\0b"),
    "NUL in a name": post(BODY, "X\0A: b"),
    "a control character": post(BODY, "X-A: a\x01b"),
    "an empty name": post(BODY, ": x"),
    "a space before a name": post(BODY, " X-A: x"),
    "no colon": post(BODY, "X-A"),
    "Host twice": post(BODY, "Host: y"),
    "no Host": post(BODY).replace(b"Host: x\r\n", b""),
    "a length twice": post(BODY, LENGTH),
    "two lengths": post(BODY, "Content-Length: 3"),
    "a list of lengths": post(BODY, framing=f"{LENGTH}, {len(BODY)}"),
    "length +5": post(BODY, framing="Content-Length: +5"),
    "length -1": post(BODY, framing="Content-Length: -1"),
    "length 0x10": post(BODY, framing="Content-Length: 0x10"),
    "length 1_0": post(BODY, framing="Content-Length: 1_0"),
    "an empty length": post(BODY, framing="Content-Length: "),
    "a length of 23 digits": post(BODY, framing="Content-Length: " + "9" * 23),
    "a space before a length's colon": post(BODY, framing=f"Content-Length : {len(BODY)}"),
    "length and chunks": post(IN_CHUNKS, "Content-Length: 5", framing=CHUNKED),
    "chunks and length": post(IN_CHUNKS, CHUNKED, framing="Content-Length: 5"),
    "xchunked": post(IN_CHUNKS, framing="Transfer-Encoding: xchunked"),
    "a space before chunks' colon": post(IN_CHUNKS, framing="Transfer-Encoding : chunked"),
    "a vertical tab before chunked": post(IN_CHUNKS, framing="Transfer-Encoding: \x0bchunked"),
    "chunked twice": post(IN_CHUNKS, CHUNKED, framing=CHUNKED),
    "chunked, identity": post(IN_CHUNKS, CHUNKED, framing="Transfer-Encoding: identity"),
    "gzip, chunked": post(IN_CHUNKS, framing="Transfer-Encoding: gzip, chunked"),
    "chunked behind a gzip": post(IN_CHUNKS, "Transfer-Encoding: gzip", framing=CHUNKED),
    "chunks in HTTP/1.0": post(IN_CHUNKS, framing=CHUNKED).replace(b"/1.1", b"/1.0", 1),
    "HTTP/0.9": b"GET /readyz\r\n\r\n",
    "HTTP/1.2": post(BODY).replace(b"/1.1", b"/1.2", 1),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method in lower case": post(BODY).replace(b"POST", b"post"),
    "a tab in the first line": post(BODY).replace(b"POST /", b"POST\t/"),
    "a tab in the target": post(BODY, path="/v1/chat/completions?a\tb"),
    "NUL in the target": post(BODY, path="/v1/chat/completions?a\0b"),
    "bytes above 127 in the target": post(BODY, path="/v1/chat/completions?a\xe9b"),
    "a fragment": post(BODY, path="/v1/chat/completions?a#b"),
    "a greeting of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32,
}
CHUNKS: dict[str, bytes] = {
    "a chunk size of 17 digits": b"f" * 17 + b"\r\nabc",
    "a negative chunk": b"-1\r\nabc",
    "chunk 0x5": b"0x5\r\nabcde\r\n0\r\n\r\n",
    "a space behind a size": b"5 \r\nabcde\r\n0\r\n\r\n",
    "chunks with bare LFs": b"5\nabcde\n0\n\n",
    "a chunk longer than told": b"3\r\nabcde\r\n0\r\n\r\n",
    "an LF in an extension": b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "a trailer that is none": b"%x\r\n%b\r\n0\r\nX y\r\n\r\n" % (len(BODY), BODY),
    "a length as trailer": b"%x\r\n%b\r\n0\r\nContent-Length: 7\r\n\r\n" % (len(BODY), BODY),
    "an endless trailer": b"%x\r\n%b\r\n0\r\nX: " % (len(BODY), BODY) + b"a" * 400_000,
    "an endless extension": b"5;" + b"a" * 400_000,
}


@pytest.mark.parametrize("how", ["in one read", "cut in two"])
async def test_c5_a_head_that_is_doubtful_is_400(
    canary: Canary, log: io.StringIO, how: str
) -> None:
    """Whatever stands behind it is not read, no engine hears of it, and nothing is repeated."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        for name, head in HEADS.items():
            marked = head.replace(b"Host: x", f"Host: {canary.text}".encode())
            content = marked + SMUGGLED
            at = len(content) // 2 if how == "cut in two" else len(content)
            async with raw(place.running.port) as client:
                await client.send(content[:at], content[at:])
                reply = await client.reply()
                assert (reply.status, reply.headers["connection"]) == (400, "close"), name
                assert reply.error["code"] == "bad_http", name
                assert canary.text.encode() not in reply.body
                assert await client.ended() == b"", name
        asked = place.count("requests_total", model="unknown", path="other", status="400")
        assert asked == len(HEADS)
        assert len(place.told("request.unread", code="bad_http")) == len(HEADS)
        assert place.engines[0].requests == []
        await until(lambda: not place.running.inbound.connections)
    Report("C5", f"{len(HEADS)} heads that are doubtful or too large, {how}", "400, closed").tell()


async def test_c5_an_odd_second_request_spoils_no_first(canary: Canary, log: io.StringIO) -> None:
    """The first is answered, and then the connection is closed."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        for name, head in HEADS.items():
            async with raw(place.running.port) as client:
                await client.send(post(BODY) + head + SMUGGLED)
                assert (await client.reply()).status == 200, name
                rest = await client.ended()
                assert rest == b"" or rest.startswith(b"HTTP/1.1 400 "), name
                assert rest.count(b"HTTP/1.1") <= 1, name
        assert [each.body for each in place.engines[0].requests] == [BODY] * len(HEADS)
    Report("C5", "the same behind a good request", "it is answered, then closed").tell()


async def test_c6_chunks_that_are_odd_are_400(canary: Canary, log: io.StringIO) -> None:
    """Sizes, extensions and trailers that are not what they should be, or too long."""
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        for name, body in CHUNKS.items():
            async with raw(place.running.port) as client:
                client.writer.write(post(body, framing=CHUNKED) + SMUGGLED)
                reply = await client.reply()
                assert (reply.status, reply.headers["connection"]) == (400, "close"), name
                assert reply.error["code"] == "bad_http", name
                assert await client.ended() == b"", name
        assert place.count("errors_total", model="unknown", reason="bad_http") == len(CHUNKS)
        assert place.engines[0].requests == []
    Report("C6", f"{len(CHUNKS)} bodies in odd chunks", "400, closed").tell()


@pytest.mark.parametrize("size", [b"ffffffffffffffff", b"7fffffffffffffff", b"7fffffff"])
async def test_c6_a_chunk_of_any_size_is_cut_by_time_or_bytes(
    canary: Canary, log: io.StringIO, size: bytes
) -> None:
    """What is told costs nothing; what comes is bounded."""
    options: dict[str, Any] = {"body_read_s": BODY_S, "body_bytes_max": BODY_BYTES_MAX}
    async with upstream_fleet([plain(b"{}")], canary, log, **options) as place:
        for content, status in ((b"abc", 408), (b"a" * 2 * BODY_BYTES_MAX, 413)):
            async with raw(place.running.port) as client:
                await client.send(post(size + b"\r\n" + content, framing=CHUNKED))
                reply = await client.reply()
                assert (reply.status, reply.error["type"]) == (status, "invalid_request_error")
                assert await client.ended() == b""
        assert place.engines[0].requests == []
    Report("C6", f"a chunk of size {size.decode()}", "408; 413 when it comes").tell()


async def test_c6_a_body_over_the_limit_is_413(canary: Canary, log: io.StringIO) -> None:
    """One of told length before a byte of it is read, and the client is not told to send it."""
    size = BODY_BYTES_MAX + 1
    async with upstream_fleet([plain(b"{}")], canary, log, body_bytes_max=BODY_BYTES_MAX) as place:
        head = post(b"", "Expect: 100-continue", framing=f"Content-Length: {size}")
        async with raw(place.running.port) as client:
            await client.send(head)
            assert (await client.head())[0] == 413
        for content in (
            post(b"a" * size),
            post(chunked(b"a" * 2_048, b"a" * 2_049), framing=CHUNKED),
        ):
            async with raw(place.running.port) as client:
                await client.send(content)
                reply = await client.reply()
                assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        whole = {"model": "m", "messages": [{"role": "user", "content": ""}]}
        whole["messages"][0]["content"] = "a" * (BODY_BYTES_MAX - len(json.dumps(whole)))  # type: ignore[index]
        async with raw(place.running.port) as client:
            await client.send(post(whole))
            assert (await client.reply()).status == 200
        reason = "request_too_large"
        assert place.count("errors_total", model="unknown", reason=reason) == 3
        assert len(place.engines[0].requests) == 1
    Report("C6", "bodies over the limit", "413, unread where the length is told").tell()


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Encoding: gzip"],
        ["Content-Encoding: GZIP, identity"],
        ["Content-Encoding: br"],
        ["Content-Encoding: identity", "Content-Encoding: gzip"],
    ],
)
async def test_c6_a_compressed_body_is_415(
    canary: Canary, log: io.StringIO, lines: list[str]
) -> None:
    """Nothing is unpacked; the connection goes on where the body was all there."""
    bomb = gzip.compress(b'{"model": "m", "x": "' + b"a" * 4_000_000 + b'"}')
    async with upstream_fleet([plain(b"{}")], canary, log) as place:
        async with raw(place.running.port) as client:
            await client.send(post(bomb, *lines))
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
            if reply.headers.get("connection") != "close":
                await client.send(post(BODY))
                assert (await client.reply()).status == 200
        assert all(each.body == BODY for each in place.engines[0].requests)
    Report("C6", f"a bomb, {' and '.join(lines)}", "415").tell()

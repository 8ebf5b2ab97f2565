"""C5, a head that two readers might understand differently: 400, closed, and no engine sees it."""

from __future__ import annotations

import json

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import door
from tests.fakes.raw import LENGTH, exchange, post

HOST = b"Host: x"
CHUNKED = b"Transfer-Encoding: chunked"
HEADS = {
    "200 KB of header": (HOST, LENGTH, b"x-a: " + b"a" * 200_000),
    "1,000 headers": (HOST, LENGTH, *(b"x-%d: a" % n for n in range(1_000))),
    "folded line": (HOST, LENGTH, b"x-a: b", b" c"),
    "NUL": (HOST, LENGTH, b"x-a: canary\0b"),
    "two Hosts": (HOST, b"Host: y", LENGTH),
    "no Host": (LENGTH,),
    "two lengths": (HOST, LENGTH, b"Content-Length: 3"),
    "signed length": (HOST, b"Content-Length: +5"),
    "length and chunked": (HOST, LENGTH, CHUNKED),
    "xchunked": (HOST, b"Transfer-Encoding: xchunked"),
    "blank before the colon": (HOST, b"Transfer-Encoding : chunked"),
    "bare LF": (HOST, LENGTH, b"x-a: b\nx-c: d"),
}


@pytest.mark.parametrize("name", HEADS)
async def test_c5_unclear_heads_are_refused(redis_url: str, canary: Canary, name: str) -> None:
    """The error is JSON, says nothing of what was sent, and ends the connection."""
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEADS[name]))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert "error" in json.loads(body)
        assert b"canary" not in body
        assert place.engine.requests == []
    Report("C5", name, "400 in JSON, closed; no engine sees it").tell()

"""C9 and C10, headers of one connection and forged ones: none reaches an engine."""

from __future__ import annotations

import re

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, door
from tests.fakes.raw import LENGTH, exchange, post
from tests.fakes.upstream import plain

HEAD = (b"Host: x", LENGTH)
HOP = (
    b"Connection: close, X-Named", b"X-Named: hop", b"TE: trailers", b"Keep-Alive: timeout=5",
    b"Proxy-Authorization: hop", b"Proxy-Connection: X-Other", b"X-Other: hop", b"Trailer: x-t",
)  # fmt: skip
FORGED = (b"x-gateway-destination-endpoint-subset", b"x-llm-d-target", b"x-kvatlas-endpoint")


async def test_c9_hop_by_hop_ends_here_both_ways(redis_url: str, canary: Canary) -> None:
    """Nor does what a Connection header names pass; framing is ours."""
    back = (b"Connection: X-Back", b"X-Back: hop", b"Keep-Alive: timeout=99", b"Trailer: x-t")
    async with door(redis_url, canary, plain(ANSWER, "200 OK", *back)) as place:
        answer = await exchange(place.running.port, post(*HEAD, *HOP))
        assert answer.startswith(b"HTTP/1.1 200 ")
        (seen,) = place.engine.requests
        passed = seen.head.lower()
        for line in HOP[1:]:
            assert b"\r\n" + line.split(b":")[0].lower() + b":" not in passed
        assert passed.count(b"content-length:") == 1
        told = answer.partition(b"\r\n\r\n")[0].lower()
        assert not re.search(rb"\r\n(x-back|keep-alive|trailer):", told)
    Report("C9", "hop-by-hop headers, nominated ones too", "none passes, either way").tell()


@pytest.mark.parametrize("header", FORGED)
async def test_c10_forged_headers_end_here(redis_url: str, canary: Canary, header: bytes) -> None:
    """In any spelling."""
    lines = (header + b": 10.0.0.1:80", header.upper() + b": 10.0.0.2:80", b"Connection: close")
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEAD, *lines))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert header not in place.engine.requests[0].head.lower()
    Report("C10", f"a forged {header.decode()}", "it ends at the router").tell()


@pytest.mark.parametrize("told", [b"a b", b"a" * 65, b"\xc3\xa9", b"a;b", b""])
async def test_c10_odd_request_ids_are_replaced(
    redis_url: str, canary: Canary, told: bytes
) -> None:
    """The engine gets one of ours."""
    lines = (b"X-Request-Id: " + told, b"Connection: close")
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEAD, *lines))
        assert answer.startswith(b"HTTP/1.1 200 ")
        ids = re.findall(rb"(?i)\r\nx-request-id: ([^\r]*)", place.engine.requests[0].head)
        assert len(ids) == 1
        assert re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", ids[0])
        assert ids[0] != told
    Report("C10", "a request id that is no id", "the router's own is used").tell()

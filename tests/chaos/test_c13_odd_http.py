"""C13, HTTP that chat clients do not speak: defined answers, in order, without a desync."""

from __future__ import annotations

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, door
from tests.fakes.raw import LENGTH, exchange, post

HEAD = (b"Host: x", LENGTH)
LAST = (*HEAD, b"Connection: close")
UPGRADE = (b"Upgrade: websocket", b"Connection: Upgrade, close")


async def test_c13_pipelined_requests_are_answered_in_order(redis_url: str, canary: Canary) -> None:
    """An error between two good ones does not shift them."""
    sent = post(*HEAD) + post(*HEAD, target=b"/nothing") + post(*LAST)
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, sent)
        statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"200", b"404", b"200"]
        assert answer.count(ANSWER) == 2
        assert len(place.engine.requests) == 2
    Report("C13", "three requests at once, one of them bad", "answered in order").tell()


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"CONNECT"])
async def test_c13_other_methods(redis_url: str, canary: Canary, method: bytes) -> None:
    """They are 405, and no engine sees them."""
    target = b"x:80" if method == b"CONNECT" else b"/v1/chat/completions"
    sent = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, target)
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, sent)
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert place.engine.requests == []
    Report("C13", f"the method {method.decode()}", "405; no engine sees it").tell()


async def test_c13_an_upgrade_is_not_taken(redis_url: str, canary: Canary) -> None:
    """The request is answered as one that offers none."""
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEAD, *UPGRADE) + post(*LAST))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert all(b"upgrade" not in each.head.lower() for each in place.engine.requests)
    Report("C13", "an upgrade to websocket", "answered as HTTP/1.1").tell()

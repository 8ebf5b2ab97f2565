"""C8, tricks with paths: only the paths that are served are reached."""

from __future__ import annotations

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import door
from tests.fakes.raw import LENGTH, exchange, post

HEAD = (b"Host: x", LENGTH, b"Connection: close")
TARGETS = (
    b"/v1/../collective_rpc", b"/v1/%2e%2e/collective_rpc", b"//v1/chat/completions",
    b"/v1/chat/completions/../../../sleep", b"/v1/chat%2fcompletions", b"/sleep",
    b"/collective_rpc", b"/reset_prefix_cache", b"/update_weights", b"/load_lora_adapter",
    b"/invocations", b"/tokenize", b"http://x/sleep",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
async def test_c8_other_paths_do_not_exist(redis_url: str, canary: Canary, target: bytes) -> None:
    """They are 404, and no engine sees them."""
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEAD, target=target))
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert place.engine.requests == []
    Report("C8", f"POST {target.decode()}", "404; no engine sees it").tell()


async def test_c8_a_query_passes_byte_for_byte(redis_url: str, canary: Canary) -> None:
    """No escape is undone, none is added, on the way to the engine."""
    target = b"/v1/chat/completions?a=%2F%2f&b=/+%20&a=%41~'&c"
    async with door(redis_url, canary) as place:
        answer = await exchange(place.running.port, post(*HEAD, target=target))
        assert answer.startswith(b"HTTP/1.1 200 ")
        (seen,) = place.engine.requests
        assert seen.head.split(b"\r\n")[0] == b"POST %b HTTP/1.1" % target
    Report("C8", "escapes in a query", "they reach the engine as they were sent").tell()

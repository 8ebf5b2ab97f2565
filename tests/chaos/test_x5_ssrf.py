"""X5, a client names addresses: the router goes to none of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import chat, door

METADATA = "169.254.169.254"
HEADERS = (
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-scores",
    "x-kvatlas-endpoint",
    "x-llm-d-target",
    "x-forwarded-host",
    "x-forwarded-for",
    "forwarded",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "x-session-token",
    "x-original-url",
)


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[str, list[int]]]:
    """Listen at an address that is in no configuration; note who comes."""
    came: list[int] = []

    async def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", came
    finally:
        server.close()


@pytest.mark.parametrize("header", HEADERS)
async def test_x5_headers_choose_no_destination(
    redis_url: str, canary: Canary, header: str
) -> None:
    """The configured engine gets the request; who steers engines does not even pass."""
    session = {"header": "x-session-token"}
    async with listener() as (address, came), door(redis_url, canary, session=session) as place:
        for target in (address, f"{METADATA}:80", f"http://{METADATA}/latest/meta-data/"):
            seen = await place.ask(chat("hello " * 20), **{header: target})
            assert seen.status == 200
        assert len(place.engine.requests) == 3
        heads = b"".join(each.head for each in place.engine.requests).lower()
        if header.startswith(("x-gateway", "x-kv", "x-llm-d", "x-prefiller", "x-enc", "x-data")):
            assert header.encode() not in heads
        assert came == []
    Report("X5", f"an address in the header {header}", "the configured engine is asked").tell()


def media(url: str) -> list[dict[str, Any]]:
    """Write bodies that name a URL wherever a body may."""
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "input_image", "image_url": url},
        {"type": "file", "file": {"file_id": url}},
    ]
    bodies = [chat("hi", messages=[{"role": "user", "content": [part]}]) for part in parts]
    return [
        *bodies,
        chat("hi", documents=[{"url": url}]),
        chat("hi", kv_transfer_params={"remote_host": url, "do_remote_prefill": True}),
        chat("hi", chat_template=url),
        chat("hi", tools=[{"type": "mcp", "server_url": url, "server_label": "x"}]),
    ]


async def test_x5_urls_in_bodies_are_not_fetched(redis_url: str, canary: Canary) -> None:
    """Media, documents, peers, tools: what is behind a URL is no business of the router."""
    async with listener() as (address, came), door(redis_url, canary) as place:
        for url in (f"http://{address}/a.png", f"http://{METADATA}/latest/meta-data/"):
            for body in media(url):
                seen = await place.ask(body)
                assert seen.status in {200, 400}
        await asyncio.sleep(0.1)
        assert came == []
        sent = [json.loads(each.body) for each in place.engine.requests]
        assert not any("kv_transfer_params" in each for each in sent)
    Report("X5", "URLs of a metadata service in bodies", "none is fetched").tell()

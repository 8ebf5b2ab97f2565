"""What our own HTTP must not let through, beside the rows of tests/chaos."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from kvatlas.common import limits
from tests.contract.test_proxy import BODY, CHAT, one_engine
from tests.fakes.upstream import Exchange, plain

START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {"extension": b"1;" + b"a" * 4_096, "trailer": b"0\r\nA: " + b"a" * 4_096}


@pytest.mark.parametrize("begin", ENDLESS.values(), ids=ENDLESS)
async def test_a_body_that_brings_no_bytes_is_refused(redis_url: str, begin: bytes) -> None:
    """Endless extensions of chunks, and trailers: nothing of them is kept for long."""
    async with one_engine(plain(b"{}"), redis_url) as (engine, running, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(START + begin)
        sent = 0
        answer = asyncio.create_task(reader.read())
        while not answer.done() and sent < 64 * limits.HEADERS_BYTES_MAX:
            writer.write(b"a" * 4_096)
            sent += 4_096
            await asyncio.sleep(0.001)
        assert (await asyncio.wait_for(answer, 5)).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert not engine.requests
        assert running.desk.open_requests == 0


async def test_an_engine_whose_trailers_never_end_has_failed(redis_url: str) -> None:
    """The client sees an answer that is not whole."""

    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.chunk(b"{}")
        await exchange.send(b"0\r\nA: ")
        while True:
            await exchange.send(b"a" * 4_096)
            await asyncio.sleep(0.001)

    async with one_engine(endless, redis_url) as (engine, running, client):
        with pytest.raises(aiohttp.ClientPayloadError):
            async with client.post(CHAT, json=BODY) as reply:
                await reply.read()
        assert json.loads(engine.requests[0].body) == BODY
        name = f"127.0.0.1:{engine.port}"
        assert running.metrics.upstream_errors.labels(name, "broken").value == 1
        assert running.pool.under_way == 0

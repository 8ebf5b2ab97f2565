"""A router is killed: only its own open streams end, and they end visibly."""

from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import pytest

from kvatlas.cli.fleet import MODEL, Fleet, FleetPlan, RouterPorts, running_fleet

PLAN = FleetPlan(engines=2, routers=2, engine={"decode_step_ms": 40.0})
TOKENS = 40


def body(number: int, tokens: int) -> dict[str, object]:
    """Write a request of its own."""
    content = f"Question {number} about the canals of the old town, please in full sentences. " * 4
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "stream": True,
    }


async def stream(
    client: aiohttp.ClientSession, router: RouterPorts, number: int, begun: asyncio.Queue[int]
) -> bytes:
    """Read a stream to its end; an end that is not clean is an error."""
    url = f"http://127.0.0.1:{router.port}/v1/chat/completions"
    received = b""
    async with client.post(url, json=body(number, TOKENS)) as reply:
        assert reply.status == 200
        while piece := await reply.content.readany():
            if not received:
                begun.put_nowait(number)
            received += piece
    return received


async def kill_one(fleet: Fleet) -> None:
    """Kill the first router while both are streaming."""
    begun: asyncio.Queue[int] = asyncio.Queue()
    async with aiohttp.ClientSession() as client:
        streams = [
            asyncio.create_task(stream(client, fleet.routers[number % 2], number, begun))
            for number in range(6)
        ]
        for _ in streams:
            await begun.get()
        os.kill(fleet.pids()["router1"], signal.SIGKILL)
        ends = await asyncio.gather(*streams, return_exceptions=True)
        for number, end in enumerate(ends):
            if number % 2:
                assert isinstance(end, bytes)
                assert end.endswith(b"data: [DONE]\n\n")
            else:
                assert isinstance(end, aiohttp.ClientError)
        later = await stream(client, fleet.routers[1], 7, begun)
        assert later.endswith(b"data: [DONE]\n\n")


@pytest.mark.timeout(60)
def test_only_its_own_streams_end() -> None:
    """The other router's go on, and it takes what comes next."""
    with running_fleet(PLAN) as fleet:
        asyncio.run(kill_one(fleet))

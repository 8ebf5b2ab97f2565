"""S2, a router is killed: its own streams are torn, visibly; nothing else is touched."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.chaos.test_s1_sigterm import streams
from tests.fakes.canary import Canary
from tests.fakes.door import chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import upstream


async def _stream(
    session: aiohttp.ClientSession, router: RouterProcess, begun: asyncio.Semaphore
) -> bytes:
    async with session.post(router.url + CHAT_PATH, json=chat("x", stream=True)) as reply:
        assert reply.status == 200
        first = await reply.content.readany()
        begun.release()
        return first + await reply.read()


@pytest.mark.timeout(60)
async def test_s2_only_its_own_streams_end(canary: Canary, redis_url: str, tmp_path: Path) -> None:
    """The other router's streams end well, and the killed one serves again when it is back."""
    del canary
    async with upstream(streams) as engine, aiohttp.ClientSession() as session:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings, 2) as routers:
            for each in routers:
                await each.ready()
            begun = asyncio.Semaphore(0)
            asked = [asyncio.create_task(_stream(session, routers[n % 2], begun)) for n in range(6)]
            for _ in asked:
                await begun.acquire()
            routers[0].signal(signal.SIGKILL)
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(end, aiohttp.ClientError) for end in ends[::2])
            assert all(isinstance(end, bytes) and end.endswith(b"[DONE]\n\n") for end in ends[1::2])
            assert routers[0].wait() == -signal.SIGKILL
            routers[0].start()
            await routers[0].ready()
            assert (await _stream(session, routers[0], begun)).endswith(b"[DONE]\n\n")
    Report("S2", "SIGKILL to one of two routers", "its streams torn, the other's whole").tell()

"""S1, SIGTERM under load: nothing is lost in a rolling restart; what takes too long is torn."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale
from tests.fakes.door import chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import SSE_HEAD, Exchange, Upstream, upstream

PRE_STOP_S = 0.6
LOOK_S = 0.1
PIECES = 10


async def streams(exchange: Exchange) -> None:
    """Answer in pieces, for a fifth of a second."""
    await exchange.send(SSE_HEAD)
    for _ in range(PIECES):
        await exchange.chunk(b'data: {"choices": []}\n\n')
        await asyncio.sleep(0.02)
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.send(b"0\r\n\r\n")


async def never_ends(exchange: Exchange) -> None:
    """Answer for ever."""
    await exchange.send(SSE_HEAD)
    while True:
        await exchange.chunk(b'data: {"choices": []}\n\n')
        await asyncio.sleep(0.02)


class Clients:
    """Clients that send new requests only where the router was ready when they last looked."""

    def __init__(self, routers: list[RouterProcess], session: aiohttp.ClientSession) -> None:
        self._routers = routers
        self._session = session
        self._ready = list(routers)
        self.is_over = False
        self.complete = 0
        self.failed: list[str] = []

    async def look(self) -> None:
        """Ask every router now and then, as a load balancer does."""
        while not self.is_over:
            self._ready = [each for each in self._routers if await self._is_ready(each)]
            await asyncio.sleep(LOOK_S)

    async def _is_ready(self, router: RouterProcess) -> bool:
        try:
            async with self._session.get(router.url + "/readyz") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def ask(self, number: int) -> None:
        """Send one stream after the other."""
        turn = number
        while not self.is_over:
            turn += 1
            if not (ready := self._ready):
                self.failed.append("none is ready")
                await asyncio.sleep(LOOK_S)
                continue
            router = ready[turn % len(ready)]
            try:
                body = chat(f"question {number}", stream=True)
                async with self._session.post(router.url + CHAT_PATH, json=body) as reply:
                    text = await reply.read()
                if reply.status == 200 and text.endswith(b"data: [DONE]\n\n"):
                    self.complete += 1
                else:
                    self.failed.append(f"{reply.status} {len(text)}")
            except aiohttp.ClientError as error:
                self.failed.append(repr(error))


async def _roll(routers: list[RouterProcess]) -> list[float]:
    """Restart one after the other; give how long each took to end."""
    took = []
    for each in routers:
        began = time.monotonic()
        each.signal(signal.SIGTERM)
        assert await asyncio.to_thread(each.wait) == 0
        took.append(time.monotonic() - began)
        each.start()
        await each.ready()
        # Clients look before the next one goes.
        await asyncio.sleep(3 * LOOK_S)
    return took


@pytest.mark.timeout(60)
async def test_s1_a_rolling_restart_loses_nothing(
    scale: Scale, canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Two routers restart under load; each request is answered whole."""
    del canary
    async with upstream(streams) as engine, aiohttp.ClientSession() as session:
        settings = router_settings(
            [f"http://127.0.0.1:{engine.port}"], redis_url, pre_stop_s=PRE_STOP_S, drain_s=5
        )
        with router_processes(tmp_path, settings, 2) as routers:
            for each in routers:
                await each.ready()
            clients = Clients(routers, session)
            async with asyncio.TaskGroup() as group:
                group.create_task(clients.look())
                for number in range(8):
                    group.create_task(clients.ask(number))
                await asyncio.sleep(0.5)
                took = [t for _ in range(scale.rounds) for t in await _roll(routers)]
                clients.is_over = True
            assert clients.failed == []
            assert clients.complete > 50
            assert min(took) >= PRE_STOP_S
            for each in routers:
                assert each.events("router.draining")
                assert each.events("router.stopped")
                assert not each.events("router.drain_exceeded")
    Report(
        "S1",
        "rolling restart of two routers under load (SIGTERM)",
        f"not ready at once, served on for {PRE_STOP_S} s, exit status 0: "
        f"0 of {clients.complete} streams failed",
    ).tell()


@pytest.mark.timeout(60)
async def test_s1_what_takes_too_long_is_torn(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """A draining router takes a request, says that its connection ends, and tears it when late."""
    del canary
    async with upstream(never_ends) as engine, aiohttp.ClientSession() as session:
        settings = router_settings(
            [f"http://127.0.0.1:{engine.port}"], redis_url, pre_stop_s=PRE_STOP_S, drain_s=0.5
        )
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()
            router.signal(signal.SIGTERM)
            await _until_unready(router, session)
            async with session.post(router.url + CHAT_PATH, json=chat("x", stream=True)) as reply:
                assert reply.status == 200
                assert reply.headers["connection"] == "close"
                with pytest.raises(aiohttp.ClientError):
                    await reply.read()
            assert await asyncio.to_thread(router.wait) == 0
            assert [line["torn"] for line in router.events("router.drain_exceeded")] == [1]
            await _is_left(engine)
    Report("S1", "SIGTERM, a stream without end", "torn after the drain budget, exit 0").tell()


async def _until_unready(router: RouterProcess, session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(PRE_STOP_S):
        while True:
            async with session.get(router.url + "/readyz") as reply:
                if reply.status == 503:
                    return
            await asyncio.sleep(0.01)


async def _is_left(engine: Upstream) -> None:
    """See that the router's connection to the engine is gone."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            while engine.closed_early == 0:  # noqa: ASYNC110 - it is the state of what runs beside
                await asyncio.sleep(0.02)
    assert engine.closed_early == 1

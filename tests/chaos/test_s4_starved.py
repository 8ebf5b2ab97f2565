"""S4, the router gets hardly any CPU: it sheds, is alive, and takes all again afterwards."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import plain, upstream

STOPPED_S = 0.4
RUNS_S = 0.03
STARVED_S = 4.0
LIVENESS_S = 3.0
"""The timeout of the liveness probe in k8s/."""


async def _starve(router: RouterProcess) -> None:
    """Let it run for a small part of the time only, as a cgroup does."""
    ends = time.monotonic() + STARVED_S
    try:
        while time.monotonic() < ends:
            router.signal(signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            router.signal(signal.SIGCONT)
            await asyncio.sleep(RUNS_S)
    finally:
        router.signal(signal.SIGCONT)


@pytest.mark.timeout(60)
async def test_s4_a_starved_router_sheds(canary: Canary, redis_url: str, tmp_path: Path) -> None:
    """Requests are answered 200 or 429, never 5xx; the gauge tells of the lag."""
    del canary
    async with upstream(plain(ANSWER)) as engine, aiohttp.ClientSession() as session:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()

            async def ask() -> int:
                async with session.post(router.url + CHAT_PATH, json=chat("x")) as reply:
                    await reply.read()
                    assert reply.status == 200 or "retry-after" in reply.headers
                    return reply.status

            async def read(path: str) -> str:
                async with session.get(router.admin_url + path) as reply:
                    assert reply.status == 200
                    return await reply.text()

            assert await ask() == 200
            starving = asyncio.create_task(_starve(router))
            statuses: list[int] = []
            lags: list[float] = []
            while not starving.done():
                statuses.append(await ask())
                began = time.monotonic()
                await read("/healthz")
                assert time.monotonic() - began < LIVENESS_S
                page = await read("/metrics")
                told = re.search(r"^kvatlas_router_loop_lag_seconds (\S+)", page, re.MULTILINE)
                assert told
                lags.append(float(told[1]))
            await starving
            began = time.monotonic()
            while await ask() != 200:
                assert time.monotonic() - began < 5
                await asyncio.sleep(0.02)
            took = time.monotonic() - began
    assert set(statuses) == {200, 429}
    assert max(lags) > 0.1
    Report(
        "S4", f"stopped for {STOPPED_S} s, runs for {RUNS_S} s, again and again",
        f"429 with Retry-After, lag gauge up to {max(lags):.1f} s, liveness answers", [took],
    ).tell()  # fmt: skip

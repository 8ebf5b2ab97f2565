"""S8, a router whose log nobody reads, or whose disk is full, serves on and counts what is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess
from tests.fakes.upstream import plain, upstream

SENT = {False: 600, True: 12_000}
"""Lines: more than a pipe holds; more than are queued, too."""
CLIENTS = 8
ALIVE_S = 3.0
"""The timeout of the liveness probe in k8s/; a loop that waited for the log would wait for ever."""


async def load(router: RouterProcess, count: int, text: str) -> float:
    """Send requests, which are all answered; give how long the slowest look at its health took."""
    left, slowest, done = iter(range(count)), 0.0, asyncio.Event()

    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            for _ in left:
                async with session.post(router.url + CHAT_PATH, json=chat(text)) as reply:
                    assert (reply.status, await reply.read()) == (200, ANSWER)

        async def look() -> None:
            nonlocal slowest
            while not done.is_set():
                began = time.monotonic()
                async with session.get(router.admin_url + "/healthz") as reply:
                    assert reply.status == 200
                slowest = max(slowest, time.monotonic() - began)
                await asyncio.sleep(0.05)

        looking = asyncio.create_task(look())
        await asyncio.gather(*(ask() for _ in range(CLIENTS)))
        done.set()
        await looking
    return slowest


async def dropped(router: RouterProcess) -> int:
    """Read how many lines were not written."""
    url = router.admin_url + "/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        page = await reply.text()
    found = re.search(r"^kvatlas_router_log_dropped (\S+)", page, re.MULTILINE)
    assert found
    return int(float(found[1]))


def read_all(pipe: int, count: int) -> tuple[Counter[str], int, str]:
    """Read until all lines of requests have come, or were told of as lost."""
    text, lost, deadline = b"", 0, time.monotonic() + 15
    events: Counter[str] = Counter()
    while events["request.finished"] + lost < count:
        assert time.monotonic() < deadline, (events, lost)
        text += os.read(pipe, 1 << 16)
        lines = [json.loads(line) for line in text.split(b"\n")[:-1] if line.startswith(b"{")]
        events = Counter(line["event"] for line in lines)
        lost = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    return events, lost, text.decode()


@pytest.mark.timeout(60)
async def test_s8_a_router_serves_on_while_nobody_reads_its_log(
    scale: Scale, canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Every request is answered; each line comes later, or is counted."""
    fifo, count = tmp_path / "log", SENT[scale.is_full]
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with upstream(plain(ANSWER)) as engine:
        router = RouterProcess(tmp_path / "router.yaml", fifo)
        router.write(router_settings([f"http://127.0.0.1:{engine.port}"], redis_url))
        try:
            router.start()
            await router.ready()
            assert await load(router, count, canary.text) < ALIVE_S
            missing = await dropped(router)
            assert (missing > 0) == scale.is_full
            os.set_blocking(pipe, True)
            events, lost, text = await asyncio.to_thread(read_all, pipe, count)
            assert lost == missing
            assert (events["log.dropped"] > 0) == scale.is_full
            canary.look("log", text)
        finally:
            router.stop()
            os.close(pipe)
    Report(
        "S8",
        f"{count} requests beside a log that nobody reads",
        f"all answered; {missing} lines dropped, in `log_dropped`, and told when it is read",
    ).tell()


@pytest.mark.timeout(60)
async def test_s8_a_router_serves_on_while_the_disk_is_full(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Every line is counted as lost."""
    async with upstream(plain(ANSWER)) as engine:
        router = RouterProcess(tmp_path / "router.yaml", Path("/dev/full"))
        router.write(router_settings([f"http://127.0.0.1:{engine.port}"], redis_url))
        try:
            router.start()
            await router.ready()
            assert await load(router, 100, canary.text) < ALIVE_S
            async with asyncio.timeout(5):
                while await dropped(router) < 100:  # noqa: ASYNC110 - it is another process's
                    await asyncio.sleep(0.05)
        finally:
            router.stop()
    Report("S8", "100 requests beside a full disk", "all answered; `log_dropped` counts").tell()

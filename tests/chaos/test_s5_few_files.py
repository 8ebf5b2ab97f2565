"""S5, no more files can be opened: what is open works, nothing spins, and it comes back."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import router_processes
from tests.fakes.upstream import plain, upstream

FREE = 5
IDLE = 40
WATCH_S = 1.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.timeout(60)
async def test_s5_without_files_nothing_spins(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """A connection that is open is served; new ones are when there are files again."""
    del canary
    async with upstream(plain(ANSWER)) as engine, aiohttp.ClientSession() as session:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()

            async def ask() -> int:
                url = router.url + CHAT_PATH
                async with session.post(url, json=chat("x")) as reply:
                    await reply.read()
                    return reply.status

            assert await ask() == 200
            before = _files(router.pid)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (before + FREE, hard))
            with ExitStack() as stack:
                for _ in range(IDLE):
                    idle = socket.create_connection(("127.0.0.1", router.port))
                    stack.enter_context(idle)
                await asyncio.sleep(0.2)
                assert _files(router.pid) >= before + FREE - 1
                began = _cpu_s(router.pid)
                async with session.get(router.url + "/readyz") as reply:
                    assert reply.status == 200
                await asyncio.sleep(WATCH_S)
                assert _cpu_s(router.pid) - began < WATCH_S / 2
            async with asyncio.timeout(5):
                while _files(router.pid) > before:  # noqa: ASYNC110 - it is another process's
                    await asyncio.sleep(0.02)
            # Engines that could not be looked at for want of files are away until the next look.
            began = time.monotonic()
            statuses = [await ask()]
            while statuses[-1] != 200:
                assert time.monotonic() - began < 5, statuses
                await asyncio.sleep(0.02)
                statuses.append(await ask())
            took = time.monotonic() - began
            assert set(statuses) <= {200, 503}
            async with (
                aiohttp.ClientSession() as another,
                another.get(router.url + "/readyz") as reply,
            ):
                assert reply.status == 200
    seen = "open connections served, no busy loop, back with files"
    Report("S5", "RLIMIT_NOFILE", seen, [took]).tell()

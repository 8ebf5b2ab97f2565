"""S5, no more files can be opened: what is open works, nothing spins, and it comes back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings
from tests.fakes.kept import Kept
from tests.fakes.router_process import router_processes
from tests.fakes.upstream import plain, upstream

FREE = 5
IDLE = 40
LARGE = 20_000_000
SPARE = 24_000_000
WATCH_S = 2.5


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
                # Longer than connections to engines are kept: a new one is wanted.
                await asyncio.sleep(WATCH_S)
                assert await ask() == 503
                assert _cpu_s(router.pid) - began < WATCH_S / 2
            async with asyncio.timeout(5):
                while _files(router.pid) > before:  # noqa: ASYNC110 - it is another process's
                    await asyncio.sleep(0.02)
            began = time.monotonic()
            assert await ask() == 200, "that we had no file is held against no engine"
            took = time.monotonic() - began
            assert not router.events("endpoint.ejected")
            async with (
                aiohttp.ClientSession() as another,
                another.get(router.url + "/readyz") as reply,
            ):
                assert reply.status == 200
            page = await _page(router.admin_url)
            assert 'errors_total{model="demo",reason="exhausted"}' in page
            assert "kvatlas_router_upstream_errors_total{" not in page
    seen = "503 `exhausted`, no busy loop, no engine is blamed, back with the first file"
    Report("S5", "RLIMIT_NOFILE", seen, [took]).tell()


async def _page(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as reply:
        return await reply.text()


@pytest.mark.timeout(60)
async def test_s5_a_low_limit_keeps_files_for_those_inside(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Connections beyond what there are files for are told so; each one inside is served."""
    inside, outside = 20, 60
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with upstream(plain(ANSWER)) as engine:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings) as [router]:
            # It looks at its limit when it has started; the interpreter takes longer than this.
            files = limits.FILES_KEPT + 2 * inside
            resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (files, hard))
            await router.ready()
            kept = [await Kept.open(router.port) for _ in range(inside)]
            for each in kept:
                assert b" 200 " in (await each.ask())[0]
            refused = [await Kept.open(router.port) for _ in range(outside)]
            for each in refused:
                head, body = await each.answer()
                assert b" 503 " in head
                assert b"too_many_connections" in body
            await asyncio.sleep(WATCH_S)
            for each in kept:
                each.send()
            heads = [(await each.answer())[0] for each in kept]
            assert all(b" 200 " in head for head in heads), "each with a new connection behind it"
            page = await _page(router.admin_url)
            assert f"kvatlas_router_connections_refused {outside:.1f}" in page
            for each in (*kept, *refused):
                each.writer.close()
            canary.look("log", router.log.read_text())
    Report(
        "S5",
        "80 connections with files for 20",
        "20 served, the others 503 `too_many_connections`",
    ).tell()


@pytest.mark.timeout(60)
async def test_s5_without_memory_requests_fail_and_nothing_else(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Large bodies find no memory: they fail, or the process ends; small ones are right again."""
    large = chat(canary.text, "x" * LARGE)
    async with upstream(plain(ANSWER)) as engine, aiohttp.ClientSession() as session:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url)
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()

            async def ask(body: dict[str, Any]) -> tuple[int, bytes]:
                sent = io.BytesIO(json.dumps(body).encode())
                try:
                    async with session.post(router.url + CHAT_PATH, data=sent) as reply:
                        return reply.status, await reply.read()
                except aiohttp.ClientError:
                    return 0, b""

            assert await ask(chat("x")) == (200, ANSWER)
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.prlimit(router.pid, resource.RLIMIT_AS, (_size(router.pid) + SPARE, hard))
            answers = await asyncio.gather(*(ask(large) for _ in range(4)))
            assert any(status in {0, 500, 503} for status, _ in answers)
            assert all(body == ANSWER for status, body in answers if status == 200)
            if router.process is not None and router.process.poll() is None:
                resource.prlimit(router.pid, resource.RLIMIT_AS, (hard, hard))
            else:
                assert router.wait() != 0
                router.start()
                await router.ready()
            began = time.monotonic()
            assert await ask(chat("x")) == (200, ANSWER)
            took = time.monotonic() - began
            status, body = await ask(large)
            assert (status, body) == (200, ANSWER)
            assert all(b"}" in each.body[-1:] for each in engine.requests), "none came in part"
            canary.look("log", router.log.read_text())
    Report(
        "S5", "RLIMIT_AS", "requests fail, or the process ends; then all is right", [took]
    ).tell()


def _size(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()

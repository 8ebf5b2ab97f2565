"""S9, load and faults in turns: errors only while there is a fault, and nothing grows.

Full size runs for eight minutes; `make soak` is the indexers' side of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.chaos.test_s1_sigterm import streams
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale, own_redis
from tests.fakes.door import chat
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import SSE_HEAD, Exchange, Upstream, upstream

CLIENTS = 8
MEMORY_MAX_MB = 700
GROWTH_MAX = 1.1
"""Of memory over the later half of the cycles; of files it is FILES_MORE_MAX."""
FILES_MORE_MAX = 3


async def cut(exchange: Exchange) -> None:
    """Break off in the middle of a stream (U5)."""
    await exchange.send(SSE_HEAD)
    await exchange.chunk(b'data: {"choices": []}\n\n')
    await asyncio.sleep(0.02)
    exchange.reset()


@dataclass
class Soak:
    """What runs, and what has been seen."""

    router: RouterProcess
    engine: Upstream
    session: aiohttp.ClientSession
    has_fault: bool = False
    is_over: bool = False
    complete: int = 0
    torn: int = 0
    wrong: list[str] = field(default_factory=list)

    async def ask(self, number: int) -> None:
        """Send one stream after the other."""
        turn = 0
        while not self.is_over:
            turn += 1
            was_fault = self.has_fault
            body = chat(f"client {number} says {turn} " * 20, stream=True)
            try:
                async with self.session.post(self.router.url + CHAT_PATH, json=body) as reply:
                    text = await reply.read()
                    told = f"{reply.status} {text[-80:]!r}"
            except aiohttp.ClientError as error:
                text, told = b"", repr(error)
            if text.endswith(b"data: [DONE]\n\n"):
                self.complete += 1
            elif was_fault or self.has_fault:
                self.torn += 1
            else:
                self.wrong.append(told)

    async def cycle(self, redis_pid: int, length_s: float) -> None:
        """Break Redis (R1), then streams (U5), then let it be."""
        os.kill(redis_pid, signal.SIGSTOP)
        await asyncio.sleep(length_s / 4)
        os.kill(redis_pid, signal.SIGCONT)
        self.has_fault, self.engine.behaviour = True, cut
        await asyncio.sleep(length_s / 4)
        self.engine.behaviour = streams
        # Streams that were begun before end within a fifth of a second.
        await asyncio.sleep(0.5)
        self.has_fault = False
        await asyncio.sleep(length_s / 2)

    def memory_mb(self) -> float:
        """Read what is resident."""
        text = Path(f"/proc/{self.router.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1_024

    def files(self) -> int:
        """Count what is open."""
        return len(list(Path(f"/proc/{self.router.pid}/fd").iterdir()))


@pytest.mark.timeout(60)
async def test_s9_nothing_grows(scale: Scale, canary: Canary, tmp_path: Path) -> None:
    """Streams fail only while engines cut them; memory and files are flat."""
    del canary
    cycles, length_s = (12, 40.0) if scale.is_full else (4, 2.0)
    began = time.monotonic()
    with own_redis() as server:
        async with upstream(streams) as engine, aiohttp.ClientSession() as session:
            settings = router_settings([f"http://127.0.0.1:{engine.port}"], server.url)
            with router_processes(tmp_path, settings) as [router]:
                await router.ready()
                soak = Soak(router, engine, session)
                samples = []
                async with asyncio.TaskGroup() as group:
                    for number in range(CLIENTS):
                        group.create_task(soak.ask(number))
                    for _ in range(cycles):
                        await soak.cycle(server.pid, length_s)
                        samples.append((soak.memory_mb(), soak.files()))
                    soak.is_over = True
                assert router.pid
    assert soak.wrong == []
    assert soak.complete > 10 * cycles
    assert soak.torn > 0
    later = samples[cycles // 2 :]
    assert later[-1][0] <= later[0][0] * GROWTH_MAX
    assert later[-1][1] <= later[0][1] + FILES_MORE_MAX
    assert max(memory for memory, _ in samples) < MEMORY_MAX_MB
    Report(
        "S9", f"R1 and U5 in turns under load for {time.monotonic() - began:.0f} s",
        f"{soak.complete} streams whole, {soak.torn} torn, all while cut; router at "
        f"{later[0][0]:.0f} MB, then {later[-1][0]:.0f} MB",
    ).tell()  # fmt: skip


LEAVERS = 40


async def hurries(exchange: Exchange) -> None:
    """Answer in many pieces, so that some come while their client goes."""
    await exchange.send(SSE_HEAD)
    for _ in range(2_000):
        await exchange.chunk(b'data: {"choices": []}\n\n')
        await asyncio.sleep(0)


async def leave(session: aiohttp.ClientSession, url: str) -> None:
    """Go while the answer is coming."""
    async with session.post(url, json=chat("x", stream=True)) as reply:
        await reply.content.readany()
        reply.close()


async def test_s9_clients_that_leave_are_no_surprise(canary: Canary, tmp_path: Path) -> None:
    """A stream whose client goes ends quietly: no traceback, and the router serves on."""
    del canary
    with own_redis() as server:
        async with upstream(hurries) as engine, aiohttp.ClientSession() as session:
            settings = router_settings([f"http://127.0.0.1:{engine.port}"], server.url)
            with router_processes(tmp_path, settings) as [router]:
                await router.ready()
                url = router.url + CHAT_PATH
                await asyncio.gather(*(leave(session, url) for _ in range(LEAVERS)))
                engine.behaviour = streams
                async with session.post(url, json=chat("x", stream=True)) as reply:
                    assert (await reply.read()).endswith(b"data: [DONE]\n\n")
                left = [one["outcome"] for one in router.events("request.finished")]
                assert left.count("client_closed") > 0
                assert "Traceback" not in router.log.read_text()
    Report("S9", f"{LEAVERS} clients leave their streams", "no traceback; serves on").tell()

"""A router process under chat traffic at a share of its core, and engines that answer it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from kvatlas.common.prompt import CHAT_PATH, demo_model_path
from kvatlas.common.settings import Settings
from tests.fakes.block_fleet import MODEL, SIZE
from tests.fakes.door import ANSWER
from tests.fakes.engines import router_settings
from tests.fakes.router_process import RouterProcess, router_processes
from tests.fakes.upstream import METRICS, SSE_HEAD, Exchange, Upstream, plain, upstream

QWEN3: Final = Path("/work/shared/data/models/qwen3")
CORE_SHARE: Final = 0.7
OPEN_MAX: Final = 24
"""Requests under way at most: what a starved machine does not get done is not sent."""
TEXT_BYTES: Final = (6_000, 24_000, 48_000)
PIECES: Final = 8
DONE: Final = b"data: [DONE]\n\n"
FAULT_TAIL_S: Final = 1.0
"""Streams that were begun in a fault are over by then."""
_SPACED: Final = bytes.maketrans(b"0123456789+/=ABCDEF", b" " * 19)


@dataclass
class Answering:
    """What the engines do."""

    engines: list[Upstream] = field(default_factory=list)
    is_cutting: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        """Answer whole or in pieces, or break off in the middle of a stream (U5)."""
        for engine in self.engines:
            engine.requests.clear()  # they would be what grows
        if b'"stream": true' not in exchange.body[-200:]:
            await plain(ANSWER)(exchange)
            return
        await exchange.send(SSE_HEAD)
        for _ in range(PIECES):
            await exchange.chunk(b'data: {"choices": []}\n\n')
            if self.is_cutting:
                exchange.reset()
                return
            await asyncio.sleep(0.02)
        await exchange.chunk(DONE)
        await exchange.send(b"0\r\n\r\n")


@dataclass
class Traffic:
    """Clients of a router.

    Attributes:
        outcomes: how many answers were whole, torn in a fault, or left by their client.
        wrong: what was not whole although no stream was being cut.
        shares: of its core that the router took, per second.
    """

    router: RouterProcess
    session: aiohttp.ClientSession
    answering: Answering
    source: random.Random
    rate: float = 20.0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    _cut_until: float = 0.0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Send for ever, as fast as keeps the router at its share."""
        due = steered = time.monotonic()
        used = self.cpu_s()
        while True:
            now = time.monotonic()
            due = max(due, now - 0.2)
            while due <= now:
                due += 1 / self.rate
                if len(self._open) < OPEN_MAX:
                    task = asyncio.create_task(self._ask())
                    self._open.add(task)
                    task.add_done_callback(self._open.discard)
            if now - steered >= 1.0:
                share = (self.cpu_s() - used) / (now - steered)
                used, steered = self.cpu_s(), now
                self.shares.append(share)
                self.rate *= min(1.25, max(0.8, CORE_SHARE / max(share, 0.01)))
                self.rate = min(max(self.rate, 5.0), 1_000.0)
            await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Wait until nothing is under way."""
        await asyncio.gather(*self._open)

    async def cut_streams(self, seconds: float) -> None:
        """Have the engines break streams off for a while (U5)."""
        self._cut_until = time.monotonic() + seconds + FAULT_TAIL_S
        self.answering.is_cutting = True
        await asyncio.sleep(seconds)
        self.answering.is_cutting = False

    async def _ask(self) -> None:
        began, kind = time.monotonic(), self.source.random()
        is_stream = kind < 0.6
        try:
            told = await self._told(
                is_stream=is_stream, leaves=kind < 0.05, is_slow=0.05 <= kind < 0.1
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            told = repr(error)
        if told in ("whole", "left"):
            self.outcomes[told] += 1
        elif is_stream and began < self._cut_until:
            self.outcomes["torn"] += 1
        else:
            self.wrong.append(told)

    async def _told(self, *, is_stream: bool, leaves: bool, is_slow: bool) -> str:
        body = json.dumps({
            "model": MODEL,
            "messages": [{"role": "user", "content": self._text()}],
            "stream": is_stream,
        }).encode()  # fmt: skip
        async with self.session.post(self.router.url + CHAT_PATH, data=body) as reply:
            if leaves:
                await reply.content.readany()
                reply.close()
                return "left"
            received = b""
            while piece := await reply.content.readany():
                received += piece
                await asyncio.sleep(0.1 if is_slow else 0)
            is_whole = received.endswith(DONE) if is_stream else received == ANSWER
            if reply.status == 200 and is_whole:
                return "whole"
            return f"{reply.status} {received[-120:]!r}"

    def _text(self) -> str:
        size = self.source.choice(TEXT_BYTES)
        return base64.b64encode(self.source.randbytes(size * 3 // 4)).translate(_SPACED).decode()

    def told(self) -> str:
        """Tell what clients saw, and how much the router did for it."""
        share = statistics.median(self.shares)
        outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(self.outcomes.items()))
        return f"chats: {outcomes}, {len(self.wrong)} wrong; router at {share:.0%} of its core"

    def tracebacks(self) -> int:
        """Count those in the router's log: none of these faults is a surprise."""
        return self.router.log.read_text().count("Traceback (most recent call last)")

    def cpu_s(self) -> float:
        """Give the processor time that the router has taken."""
        stat = Path(f"/proc/{self.router.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def answering_engines(count: int) -> AsyncIterator[Answering]:
    """Run the HTTP side of engines until the context ends."""
    answering = Answering()
    async with AsyncExitStack() as stack:
        for _ in range(count):
            engine = await stack.enter_async_context(upstream(answering))
            page = METRICS.replace(b'block_size="16"', b'block_size="%d"' % SIZE)
            engine.metrics = page.replace(b'"m"', b'"%s"' % MODEL.encode())
            answering.engines.append(engine)
        yield answering


@asynccontextmanager
async def traffic(
    folder: Path, redis_url: str, answering: Answering, seed: int
) -> AsyncIterator[Traffic]:
    """Run a router before the engines, and its clients."""
    with ExitStack() as stack:
        [router] = stack.enter_context(router_processes(folder, _settings(redis_url, answering)))
        await router.ready()
        limit = aiohttp.ClientTimeout(total=30)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
            made = Traffic(router, session, answering, random.Random(seed))
            sending = asyncio.create_task(made.run())
            try:
                yield made
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                await made.quiet()


def _settings(redis_url: str, answering: Answering) -> Settings:
    tokenizer = str(QWEN3 if QWEN3.exists() else demo_model_path())
    model = {"name": MODEL, "tokenizer": tokenizer, "block_size": SIZE}
    urls = [f"http://127.0.0.1:{engine.port}" for engine in answering.engines]
    settings = router_settings(urls, redis_url, metrics_interval_s=1.0)
    changed = settings.model_dump(exclude_defaults=True, mode="json")
    changed["models"] = [model]
    for endpoint in changed["endpoints"]:
        endpoint["model"] = MODEL
    return Settings.model_validate(changed)

"""An engine of which only the page of metrics is there, and who counts how often it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from kvatlas.common.admin import serving
from kvatlas.common.ids import EndpointName, endpoint_name

RUNNING = 'vllm:num_requests_running{engine="%d",model_name="m"} %d\n'
WAITING = 'vllm:num_requests_waiting{engine="%d",model_name="m"} %d\n'
CACHE = 'vllm:cache_config_info{block_size="16",engine="%d",num_gpu_blocks="100"} 1.0\n'


@dataclass
class GaugedEngine:
    """An engine that tells what it is told to tell.

    Attributes:
        running, waiting: by rank.
        start: when its process began.
        more: further lines of its page.
        key: that it asks for.
        hangs: whether it takes requests and does not answer.
        looks: how often its page was asked for.
        refused: how often without its key.
    """

    port: int = 0
    running: list[int] = field(default_factory=lambda: [0])
    waiting: list[int] = field(default_factory=lambda: [0])
    start: str | None = "1795420000.5"
    more: str = ""
    key: str | None = None
    hangs: bool = False
    looks: int = 0
    refused: int = 0

    @property
    def url(self) -> str:
        """Give where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def name(self, rank: int = 0) -> EndpointName:
        """Name one of its endpoints."""
        return endpoint_name(f"127.0.0.1:{self.port}", rank)

    def page(self) -> str:
        """Write its page."""
        start = f"process_start_time_seconds {self.start}\n" if self.start else ""
        ranks = (
            RUNNING % (rank, running) + WAITING % (rank, self.waiting[rank]) + CACHE % rank
            for rank, running in enumerate(self.running)
        )
        return start + "".join(ranks) + self.more

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer who asks for the page."""
        self.looks += 1
        await self._hang()
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            self.refused += 1
            return web.Response(status=401)
        return web.Response(text=self.page())

    async def health(self, request: web.Request) -> web.Response:
        """Answer who asks whether it is well."""
        del request
        await self._hang()
        return web.Response()

    async def _hang(self) -> None:
        if self.hangs:
            await asyncio.sleep(60)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[GaugedEngine]:
        """Serve until the context ends; again on the same port."""
        app = web.Application()
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        async with serving(app, "127.0.0.1", self.port) as port:
            self.port = port
            yield self

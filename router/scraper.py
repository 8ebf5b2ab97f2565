"""Looking at each engine's metrics again and again, for load, block size and health."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from kvatlas.common import limits
from kvatlas.router.endpoints import Engine, Fleet
from kvatlas.router.engine_metrics import EngineSample, parse_metrics

_JITTER = 0.1
_AT_ONCE_MAX = 64
"""Pages read at the same time; more engines take turns."""


class PageTooLarge(Exception):
    """The page is over METRICS_BYTES_MAX."""


class Scraper:
    """Read the metrics of every engine, one task per engine.

    Args:
        session: makes the requests; the caller closes it.
        interval_s: between the ends and beginnings of two looks at one engine.
    """

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, interval_s: float) -> None:
        self._fleet = fleet
        self._session = session
        self._interval_s = interval_s
        self._slots = asyncio.Semaphore(_AT_ONCE_MAX)

    async def run(self) -> None:
        """Scrape until cancelled."""
        async with asyncio.TaskGroup() as group:
            for engine in self._fleet.engines:
                group.create_task(self._follow(engine), name=f"scrape {engine.url}")

    async def _follow(self, engine: Engine) -> None:
        while True:
            async with self._slots:
                await self.scrape(engine)
            # Routers that were started together should not ask together.
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
            await asyncio.sleep(self._interval_s * jitter)

    async def scrape(self, engine: Engine) -> None:
        """Look once, and tell the engine's endpoints what was found."""
        before = [endpoint.requests for endpoint in engine.endpoints]
        try:
            async with asyncio.timeout(limits.METRICS_TIMEOUT_S):
                samples = parse_metrics(await self._page(engine))
        except aiohttp.ClientConnectorError:
            for endpoint in engine.endpoints:
                endpoint.connect_failed()
                endpoint.scrape_failed()
            return
        except (aiohttp.ClientError, OSError, TimeoutError, PageTooLarge):
            for endpoint in engine.endpoints:
                endpoint.scrape_failed()
            return
        for endpoint, own in zip(engine.endpoints, before, strict=True):
            sample = samples.get(endpoint.rank, EngineSample())
            endpoint.observe(sample, max(own, endpoint.requests))

    async def _page(self, engine: Engine) -> bytes:
        # The key, but not the rank: one page tells of all ranks.
        headers = [pair for pair in engine.endpoints[0].headers if pair[0] == "Authorization"]
        async with self._session.get(
            f"{engine.url}/metrics", headers=headers, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                raise aiohttp.ClientPayloadError(f"status {answer.status}")
            chunks: list[bytes] = []
            size = 0
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                if size > limits.METRICS_BYTES_MAX:
                    raise PageTooLarge
                chunks.append(chunk)
            return b"".join(chunks)

"""Leave notes of doubt for the indexer."""

from __future__ import annotations

import asyncio
from typing import Final, Self

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.log import logger
from kvatlas.common.redis_client import connect, guard
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.router.accuracy import Doubt
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.metrics import RouterMetrics

_LOG = logger("doubts")

CONNECTIONS: Final = 1


class Doubts:
    """Write notes one after the other, off every request's way."""

    def __init__(self, client: Redis, metrics: RouterMetrics) -> None:
        self._client = client
        self._metrics = metrics
        self._queue: asyncio.Queue[tuple[Endpoint, Doubt]] = asyncio.Queue(limits.DOUBTS_QUEUED_MAX)

    @classmethod
    def connect(cls, redis: str | RedisSettings, metrics: RouterMetrics) -> Self:
        """Make one with a connection of its own: readers' deadlines are not for writes."""
        client = connect(redis, timeout_s=limits.REDIS_WRITE_S, connections_max=CONNECTIONS)
        return cls(client, metrics)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    def leave(self, endpoint: Endpoint, doubt: Doubt) -> None:
        """Have a note written; never waits, and drops it when too many wait."""
        _LOG.warning(
            "endpoint.doubted",
            endpoint=endpoint.name,
            epoch=doubt.epoch,
            answers=doubt.answers,
            over_share=round(doubt.share, 3),
        )
        try:
            self._queue.put_nowait((endpoint, doubt))
        except asyncio.QueueFull:
            self._count(endpoint, "dropped")

    async def run(self) -> None:
        """Write notes for ever. One that fails is counted and not tried again: doubt comes back."""
        while True:
            endpoint, doubt = await self._queue.get()
            try:
                with guard():
                    async with asyncio.timeout(limits.REDIS_WRITE_S):
                        await self._client.hset(endpoint.shard.doubts, endpoint.name, doubt.text)
            except IndexUnavailable as error:
                self._count(endpoint, "failed")
                _LOG.error("doubt.failed", endpoint=endpoint.name, reason=error.reason)
            else:
                self._count(endpoint, "noted")

    def _count(self, endpoint: Endpoint, outcome: str) -> None:
        self._metrics.doubts.labels(endpoint.name, outcome).inc()

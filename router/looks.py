"""Look at engines ourselves, where nobody else tells how they are.

That is where no indexer has told lately, where one has found nothing, and where an engine has
failed us: then what we see ourselves decides.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import aiohttp

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.engine_look import look
from kvatlas.router.endpoint import Endpoint, Engine
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.metrics import RouterMetrics

FIRST_READ_S: Final = 1.0
"""For what is shared to be read, at the start, before we look ourselves."""
STALL_S: Final = 0.5
"""Of our own loop, after which we look at nobody for as long: what is shared lies unread."""

IsFresh = Callable[[Endpoint, float], bool]


class Looks:
    """Look, for ever.

    Args:
        session: what engines are asked with.
        endpoints: whose engines are looked at, and told what was seen.
        is_fresh: tells whether an endpoint's shared gauges are believed at a moment.
        metrics: of the process.
        interval_s: between two looks at one engine.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        is_fresh: IsFresh,
        metrics: RouterMetrics,
        interval_s: float,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._is_fresh = is_fresh
        self._metrics = metrics
        self._interval_s = interval_s
        self._under_way = 0

    async def run(self, begun: Callable[[], Awaitable[None]]) -> None:
        """Look where it is needed, and follow how many requests our routers have under way.

        Args:
            begun: waits until what is shared has been read once.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(begun(), FIRST_READ_S)
        before_s, not_before_s = monotonic(), 0.0
        async with asyncio.TaskGroup() as group:
            while True:
                now_s = monotonic()
                if now_s - before_s > STALL_S:
                    not_before_s = now_s + STALL_S
                before_s = now_s
                for endpoint in self._endpoints.all():
                    endpoint.note_requests(now_s)
                for engine in self._endpoints.engines() if now_s >= not_before_s else ():
                    if self._is_needed(engine, now_s):
                        engine.is_looked_at = True
                        self._under_way += 1
                        group.create_task(self._look(engine))
                await asyncio.sleep(limits.REQUESTS_NOTED_S)

    def _is_needed(self, engine: Engine, now_s: float) -> bool:
        if all(self._is_told_of(endpoint, now_s) for endpoint in engine.endpoints):
            return False
        return (
            now_s >= engine.look_due_s
            and not engine.is_looked_at
            and self._under_way < limits.LOOKS_AT_ONCE_MAX
        )

    def _is_told_of(self, endpoint: Endpoint, now_s: float) -> bool:
        # Who is out comes back by what we see ourselves, without a client's request as a trial.
        # Who has just joined may have been told of before, and is looked at once at least.
        is_well = endpoint.asked and not endpoint.failures and not endpoint.standing.is_out
        return is_well and self._is_fresh(endpoint, now_s)

    async def _look(self, engine: Engine) -> None:
        try:
            found = await look(self._session, engine.url, engine.api_key, engine.tls)
            is_alive = found.is_up or (found.is_asked and await self._is_alive(engine))
        finally:
            engine.is_looked_at = False
            self._under_way -= 1
        self._metrics.looks.labels(found.outcome).inc()
        if is_alive and not found.is_up:
            self._endpoints.note_alive(engine)
        elif found.is_asked:
            self._endpoints.note_look(engine, found)
        # Spread, so that many routers do not ask in step.
        pause_s = self._interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
        engine.look_due_s = monotonic() + pause_s

    async def _is_alive(self, engine: Engine) -> bool:
        """Ask an engine whose page does not come for its health: the page may be all that hangs."""
        asked = Asked(engine.url, engine.api_key, limits.HEALTH_TIMEOUT_S, tls=engine.tls)
        try:
            reply = await ask(self._session, asked, "/health")
        except Silence:
            return False
        return 0 < reply.status < HTTPStatus.INTERNAL_SERVER_ERROR

"""Ask idle engines for one token, where the operator allows it.

vLLM tells that its cache was cleared (`/reset_prefix_cache`, sleep) with the next step that it
takes; an idle one takes none, and its blocks stay in the index until a request finds them gone. A
request of one token, which stores no block, brings the news out.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import orjson

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.prompt import COMPLETIONS_PATH
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.metrics import RouterMetrics

TICK_S: Final = 1.0
TOKEN: Final = 1
"""Every vocabulary has it."""
OK: Final = 200


class IdleProbes:
    """Send such requests, one per endpoint and idle time.

    Args:
        idle_s: without a request before an endpoint gets one; above 0.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        metrics: RouterMetrics,
        idle_s: float,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._metrics = metrics
        self._idle_s = idle_s
        self._since: dict[Endpoint, float] = {}

    async def run(self) -> None:
        """Send them for ever."""
        while True:
            due = self._due(monotonic())
            await asyncio.gather(*map(self._probe, due))
            await asyncio.sleep(min(TICK_S, self._idle_s))

    def _due(self, now: float) -> list[Endpoint]:
        due = []
        before, self._since = self._since, {}
        for endpoint in self._endpoints.all():
            is_busy = endpoint.requests or endpoint.others_running or endpoint.others_waiting
            since = before.get(endpoint)
            if is_busy or since is None or not endpoint.healthy:
                self._since[endpoint] = now
            elif now - since >= self._idle_s:
                self._since[endpoint] = now
                due.append(endpoint)
            else:
                self._since[endpoint] = since
        return due[: limits.IDLE_PROBES_MAX]

    async def _probe(self, endpoint: Endpoint) -> None:
        body = orjson.dumps({"model": endpoint.model, "prompt": [TOKEN], "max_tokens": 1})
        asked = Asked(endpoint.url, endpoint.api_key, rank=endpoint.asked_rank, tls=endpoint.tls)
        try:
            answered = (await ask(self._session, asked, COMPLETIONS_PATH, body)).status == OK
        except Silence:
            answered = False
        outcome = "answered" if answered else "failed"
        if endpoint.is_gone:
            return
        self._metrics.idle_probes.labels(endpoint.name, outcome).inc()

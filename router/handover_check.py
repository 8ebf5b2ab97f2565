"""Compare ids that were handed over with the engine's own, for a share of the requests.

Off the request's way. The first difference ends the handover for the model, for as long as this
process lives: somebody got an answer to another prompt than was sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp

from kvatlas.common import limits
from kvatlas.common.engine_client import Asked, Silence, ask
from kvatlas.common.ids import ModelName
from kvatlas.common.log import logger
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.engine_answers import read_token_ids
from kvatlas.router.handover import question
from kvatlas.router.metrics import RouterMetrics

_LOG = logger("handover")

WORKERS: Final = 2

Verdict = Literal["agrees", "differs", "unanswered"]


@dataclass(frozen=True, slots=True)
class _Check:
    model: ModelName
    endpoint: Endpoint
    asked: bytes
    token_ids: Sequence[int]


class HandoverChecks:
    """Check some of what is handed over, and know for which models that has ended.

    Args:
        session: to ask engines with.
        share: of the requests, 0 to 1.
        models: those that hand over.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        share: float,
        models: Sequence[ModelName],
        metrics: RouterMetrics,
    ) -> None:
        self._session = session
        self._share = share
        self._metrics = metrics
        self._on = set(models)
        self._queue: asyncio.Queue[_Check] = asyncio.Queue(limits.HANDOVER_CHECKS_QUEUED_MAX)
        self._bytes = 0
        for model in models:
            metrics.handover_on.labels(model).set(1)

    def is_on(self, model: ModelName) -> bool:
        """Tell whether a model's tokens may be handed over."""
        return model in self._on

    def sample(
        self,
        model: ModelName,
        endpoint: Endpoint,
        body: Mapping[str, Any],
        token_ids: Sequence[int],
    ) -> None:
        """Have a request checked, if its turn comes; never waits."""
        if random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        asked = question(body)
        if asked is None:
            self._count(model, "unanswerable")
            return
        if self._bytes + len(asked) > limits.HANDOVER_CHECKS_BYTES_MAX or self._queue.full():
            self._count(model, "dropped")
            return
        self._bytes += len(asked)
        self._queue.put_nowait(_Check(model, endpoint, asked, token_ids))

    async def run(self) -> None:
        """Check for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            check = await self._queue.get()
            try:
                verdict = await self._verdict(check)
            finally:
                self._bytes -= len(check.asked)
            self._count(check.model, verdict)
            if verdict == "differs":
                self._stop(check)

    async def _verdict(self, check: _Check) -> Verdict:
        endpoint = check.endpoint
        # More bytes are so many more tokens, or something else altogether.
        most = limits.TOKENIZE_ANSWER_BYTES_PER_TOKEN * (len(check.token_ids) + 1_000)
        asked = Asked(
            endpoint.url, endpoint.api_key, limits.HANDOVER_CHECK_S, most, tls=endpoint.tls
        )
        try:
            reply = await ask(self._session, asked, "/tokenize", check.asked)
        except Silence:
            return "unanswered"
        tokens = read_token_ids(reply.content) if reply.status == 200 else None
        if tokens is None:
            return "unanswered"
        return "agrees" if tokens == list(check.token_ids) else "differs"

    def _stop(self, check: _Check) -> None:
        self._on.discard(check.model)
        self._metrics.handover_on.labels(check.model).set(0)
        check.endpoint.distrust()
        _LOG.error("handover.stopped", model=check.model, endpoint=check.endpoint.name)

    def _count(self, model: ModelName, outcome: str) -> None:
        self._metrics.handover_checks.labels(model, outcome).inc()

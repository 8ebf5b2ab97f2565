"""Limits of tenants: requests and tokens per minute, counted in Redis by all routers together.

One script call per request, which also settles what earlier ones used; without an answer in time
the request passes: limits are fairness, not protection, which is for each router's own bounds.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Final

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.clock import Clock, monotonic
from kvatlas.common.deadline import Deadline
from kvatlas.common.errors import IndexUnavailable, RateLimited
from kvatlas.common.keyspace import used_key
from kvatlas.common.redis_client import Script
from kvatlas.router.breaker import Breaker
from kvatlas.router.headers import Header
from kvatlas.router.keys import Client, Rates
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.usage import Usage

_UNTAKEN: Final = frozenset({499})
"""Statuses that say nothing of what an engine has done: the client left."""


@dataclass(slots=True)
class Grant:
    """What a request took of its tenant's limits.

    Attributes:
        headers: that tell the client what is left.
    """

    client: Client
    taken: int
    headers: list[Header] = field(default_factory=list)


@dataclass(slots=True)
class _Tenant:
    """What this router knows of a tenant.

    Attributes:
        rates: as they were last.
        unsettled: tokens to tell Redis of.
        shut_until: before which Redis would take no request.
    """

    rates: Rates
    unsettled: int = 0
    shut_until: float = -math.inf


class RateLimits:
    """Count requests and tokens of tenants.

    Args:
        client: of Redis, to write with.
        limit_s: for its answer while a request waits.
        metrics: of the router.
        clock: seconds on a monotonic scale.
    """

    def __init__(
        self, client: Redis, limit_s: float, metrics: RouterMetrics, clock: Clock = monotonic
    ) -> None:
        self._client = client
        self._limit_s = limit_s
        self._metrics = metrics
        self._clock = clock
        self._script = Script("take")
        self._tenants: dict[str, _Tenant] = {}
        self._breaker = Breaker(limits.LOOKUP_FAILURES_MAX, limits.LOOKUP_PAUSE_S, clock)

    def check(self, client: Client | None) -> None:
        """Refuse at the door who is known to have no request left, before anything is read.

        Raises:
            RateLimited: the client's.
        """
        tenant = self._tenants.get(client.tenant) if client and client.rates else None
        if client is None or tenant is None or tenant.rates != client.rates:
            return
        left_s = tenant.shut_until - self._clock()
        if left_s > 0:
            raise self._refusal(client, "requests", left_s, [])

    async def take(self, client: Client | None, tokens: int) -> Grant | None:
        """Count a request in; None where its tenant has no limit, or Redis does not say.

        Args:
            client: who sent it.
            tokens: of its prompt.

        Raises:
            RateLimited: the client's.
        """
        if client is None or client.rates is None:
            return None
        asked_at = self._clock()
        if not self._breaker.lets_through():
            self._metrics.limit_failures.labels("paused").inc()
            return None
        tenant = self._tenants.setdefault(client.tenant, _Tenant(client.rates))
        # What a call takes along is lost with it: whether Redis counted it is not known.
        tenant.rates, settled, tenant.unsettled = client.rates, tenant.unsettled, 0
        try:
            with Deadline(self._limit_s, limits.LOOKUP_GRACE_S):
                told = await self._call(client.tenant, client.rates, (1, tokens, settled))
        except (IndexUnavailable, TimeoutError) as error:
            reason = error.reason if isinstance(error, IndexUnavailable) else "timeout"
            self._metrics.limit_failures.labels(reason).inc()
            self._breaker.failed(asked_at)
            return None
        self._breaker.succeeded()
        requests, used, *waits_ms = told
        headers = _headers(client.rates, requests, used)
        if not any(waits_ms):
            return Grant(client, tokens, headers)
        if waits_ms[0]:
            tenant.shut_until = self._clock() + waits_ms[0] / 1e3
        kind = "requests" if waits_ms[0] >= waits_ms[1] else "tokens"
        raise self._refusal(client, kind, max(waits_ms) / 1e3, headers)

    def settle(self, grant: Grant | None, status: int, usage: Usage | None) -> None:
        """Tell what a request has used; where no engine says so, what it took stays taken.

        Args:
            grant: that it was given.
            status: of its answer; 0 where there was none.
            usage: as the engine reported it.
        """
        if grant is None:
            return
        used = grant.taken
        if usage is not None:
            used = usage.prompt_tokens + usage.output_tokens
        elif status >= limits.HTTP_ERRORS_FROM and status not in _UNTAKEN:
            used = 0
        self._tenants[grant.client.tenant].unsettled += used - grant.taken

    async def run(self) -> None:
        """Settle what no request of the tenant has settled along with it, for ever."""
        while True:
            await asyncio.sleep(limits.RATES_SETTLE_S)
            await self.flush()

    async def flush(self) -> None:
        """Settle all; what fails is lost, and counted."""
        for name, tenant in list(self._tenants.items()):
            if not (tokens := tenant.unsettled):
                continue
            tenant.unsettled = 0
            try:
                await self._call(name, tenant.rates, (0, 0, tokens))
            except IndexUnavailable as error:
                self._metrics.limit_failures.labels(error.reason).inc()

    async def _call(self, tenant: str, rates: Rates, amounts: tuple[int, int, int]) -> list[int]:
        args = (rates.requests_per_minute, rates.tokens_per_minute, *amounts)
        told: list[int] = await self._script.run(
            self._client, (used_key(tenant),), (*args, limits.RATES_DEBT_MINUTES)
        )
        return told

    def _refusal(
        self, client: Client, kind: str, wait_s: float, headers: list[Header]
    ) -> RateLimited:
        self._metrics.rate_limited.labels(client.tenant, kind).inc()
        error = RateLimited(f"the limit of {kind} per minute is reached")
        error.headers = [*headers, ("Retry-After", str(math.ceil(wait_s)))]
        return error


def _headers(rates: Rates, requests: int, tokens: int) -> list[Header]:
    """Say what is left, in OpenAI's words."""
    headers: list[Header] = []
    for kind, rate, used in (
        ("requests", rates.requests_per_minute, requests),
        ("tokens", rates.tokens_per_minute, tokens),
    ):
        if rate:
            headers += [
                (f"x-ratelimit-limit-{kind}", str(rate)),
                (f"x-ratelimit-remaining-{kind}", str(max(0, rate - used))),
                (f"x-ratelimit-reset-{kind}", f"{used / rate * 60:.3f}s"),
            ]
    return headers

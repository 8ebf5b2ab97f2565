"""Let in no more than a router can hold, before anything of a body is read; by model behind it.

What is refused here costs some microseconds; everybody else is served as if they had not come.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from kvatlas.common import limits
from kvatlas.common.clock import Clock, monotonic
from kvatlas.common.errors import Overloaded
from kvatlas.common.ids import ModelName
from kvatlas.common.records import record
from kvatlas.common.settings import RouterSettings
from kvatlas.router.answers import RETRY_AFTER_S
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.request import Request

Reason = Literal["lag", "requests", "bytes", "tenant_requests", "tenant_bytes", "model_requests"]


@record
class Ask:
    """What a request asks to be let in with.

    Attributes:
        tenant: whose it is; None where no keys are asked for.
        body_bytes: most that its body will take.
    """

    tenant: str | None
    body_bytes: int


@dataclass(slots=True)
class _Held:
    """What is under way."""

    requests: int = 0
    body_bytes: int = 0

    def add(self, sign: int, body_bytes: int) -> None:
        self.requests += sign
        self.body_bytes += sign * body_bytes


class Stay:
    """A request that was let in, until its context ends."""

    __slots__ = ("_admission", "_ask")

    def __init__(self, admission: Admission, ask: Ask) -> None:
        self._admission = admission
        self._ask = ask

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self._admission.count(self._ask, -1)


class ModelStay:
    """A request that was let in to a model, until its context ends."""

    __slots__ = ("_counts", "_model")

    def __init__(self, counts: Counter[ModelName], model: ModelName) -> None:
        self._counts = counts
        self._model = model

    def __enter__(self) -> None:
        self._counts[self._model] += 1

    def __exit__(self, *exc: object) -> None:
        self._counts[self._model] -= 1


class Admission:
    """Count what is under way, in all and by tenant, and how late the loop is.

    Args:
        settings: the bounds.
        metrics: of the router.
        clock: seconds on a monotonic scale.
    """

    def __init__(
        self, settings: RouterSettings, metrics: RouterMetrics, clock: Clock = monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._all = _Held()
        self._tenants: dict[str, _Held] = {}
        self._models: Counter[ModelName] = Counter()
        self._lags: deque[float] = deque([0.0] * limits.LAGS_KEPT, limits.LAGS_KEPT)
        self.configure(settings)
        metrics.admitted.set_function(lambda: self._all.requests)
        metrics.held_bytes.set_function(lambda: self._all.body_bytes)
        metrics.loop_lag.set_function(lambda: self.lag_s)

    @property
    def lag_s(self) -> float:
        """Give how late the loop has been for a while: a single stall is none."""
        return min(self._lags)

    def configure(self, settings: RouterSettings) -> None:
        """Take other bounds; what is under way stays counted."""
        self._settings = settings

    def refusal(self, ask: Ask) -> Reason | None:
        """Say why a request is not let in; None where it is.

        All that decides on it is here, so this is where priorities will have their say.
        """
        settings, held = self._settings, self._all
        if settings.shed_lag_s and self.lag_s > settings.shed_lag_s:
            return "lag"
        if held.requests >= settings.requests_max:
            return "requests"
        if held.body_bytes + ask.body_bytes > settings.held_bytes_max:
            return "bytes"
        own = self._tenants.get(ask.tenant or "", _Held())
        if ask.tenant is None:
            return None
        if own.requests >= (settings.tenant_requests_max or settings.requests_max):
            return "tenant_requests"
        most = settings.tenant_held_bytes_max or settings.held_bytes_max
        return "tenant_bytes" if own.body_bytes + ask.body_bytes > most else None

    def admitted(self, ask: Ask) -> Stay:
        """Count a request in until the context of what is given ends.

        Raises:
            Overloaded: it is not let in.
        """
        reason = self.refusal(ask)
        if reason is not None:
            raise self._refused(reason)
        if ask.tenant is not None:
            self._tenants.setdefault(ask.tenant, _Held())
        self.count(ask, 1)
        return Stay(self, ask)

    def admitted_to(self, model: ModelName, requests_max: int | None) -> ModelStay:
        """Count a request in with its model until the context of what is given ends.

        Args:
            model: that it asks for, which is known only when its body is read.
            requests_max: under way with it; None for as many as come.

        Raises:
            Overloaded: it is not let in.
        """
        if requests_max is not None and self._models[model] >= requests_max:
            raise self._refused("model_requests")
        return ModelStay(self._models, model)

    def _refused(self, reason: Reason) -> Overloaded:
        self._metrics.shed.labels(reason).inc()
        error = Overloaded("too much is under way; try again")
        error.headers = [("Retry-After", RETRY_AFTER_S)]
        return error

    def count(self, ask: Ask, sign: int) -> None:
        """Count a request in (1) or out (-1)."""
        self._all.add(sign, ask.body_bytes)
        tenant = ask.tenant
        if tenant is not None:
            own = self._tenants[tenant]
            own.add(sign, ask.body_bytes)
            if not own.requests:
                del self._tenants[tenant]

    def ask_of(self, request: Request) -> Ask:
        """Tell what a request asks to be let in with."""
        client, most = request.client, self._settings.body_bytes_max
        # A body of unknown length may become as long as one may be.
        length = request.content_length if request.content_length is not None else most
        return Ask(client.tenant if client else None, min(length, most))

    async def run(self) -> None:
        """Measure how late the loop is, for ever."""
        while True:
            due = self._clock() + limits.LAG_LOOK_S
            await asyncio.sleep(limits.LAG_LOOK_S)
            self._lags.append(max(0.0, self._clock() - due))

"""One request from its arrival to its log line."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from kvatlas.common.clock import monotonic
from kvatlas.common.errors import HttpError, Overloaded
from kvatlas.common.ids import ModelName
from kvatlas.common.log import logger
from kvatlas.router.headers import request_id
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.rates import Grant
from kvatlas.router.request import Request
from kvatlas.router.tracing import Trace
from kvatlas.router.usage import Usage

_LOG = logger("router")
UNKNOWN: Final = ModelName("unknown")
"""Model of requests for one that is not served."""
_CHANCE = random.Random()  # noqa: S311 - ids of requests guard nothing


def chosen_id(received: str | None) -> str:
    """Take over a client's request id if it is safe to repeat, else make one."""
    return request_id(received) or f"{_CHANCE.getrandbits(128):032x}"


@dataclass(slots=True)
class Trip:
    """What becomes known of a request on its way.

    Attributes:
        tenant: whose key was shown; None where none is asked for.
        priority: of its objective; below 0 it is shed first.
        match_tokens: the predicted hit.
        cached_tokens: the actual one, as the engine reported it.
        usage: what the engine reported.
        grant: what it took of its tenant's limits; None where there are none.
        is_handed_over: whether the engine was given our token ids.
        trace: None where the request is not traced.
    """

    request_id: str
    path: str
    begun: float = field(default_factory=monotonic)
    model: ModelName = UNKNOWN
    tenant: str | None = None
    status: int = 0
    endpoint: str | None = None
    prompt_tokens: int | None = None
    match_tokens: int = 0
    cached_tokens: int | None = None
    fallback: str | None = None
    priority: int = 0
    retries: int = 0
    is_handed_over: bool = False
    first_byte_ms: float | None = None
    outcome: str = "answered"
    usage: Usage | None = None
    grant: Grant | None = None
    trace: Trace | None = None

    def began(self) -> float:
        """Note the first byte; give the seconds that it took."""
        spent = monotonic() - self.begun
        self.first_byte_ms = spent * 1e3
        return spent

    def spent_s(self) -> float:
        """Tell how long it has taken so far."""
        return monotonic() - self.begun

    def error(self) -> str | None:
        """Say why it was not answered well, in one of a closed set of words; None if it was."""
        if self.outcome != "answered":
            return self.outcome
        return f"engine_{self.status // 100}xx" if self.status >= HTTPStatus.BAD_REQUEST else None

    def received(self) -> None:
        """Note that the body is there."""
        if self.trace is not None:
            self.trace.end_stage("receive", {})

    def decided(self, timings_ms: Mapping[str, float]) -> None:
        """Note that it is decided where to send it."""
        if self.trace is not None:
            self.trace.end_stage("decide", {"kvatlas.fallback": self.fallback}, timings_ms)

    def attempted(self) -> None:
        """Note that an engine is done with it, well or not."""
        if self.trace is not None:
            told = {
                "kvatlas.endpoint": self.endpoint,
                "kvatlas.match_tokens": self.match_tokens,
                "http.response.status_code": self.status or None,
                "kvatlas.first_byte_ms": self.first_byte_ms,
            }
            self.trace.end_stage("engine", told)

    def _end_trace(self, trace: Trace) -> None:
        told = {
            "http.request.method": "POST",
            "url.path": self.path,
            "http.response.status_code": self.status or None,
            "gen_ai.request.model": self.model,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "kvatlas.request_id": self.request_id,
            "kvatlas.endpoint": self.endpoint,
            "kvatlas.match_tokens": self.match_tokens,
            "kvatlas.cached_tokens": self.cached_tokens,
            "kvatlas.fallback": self.fallback,
            "kvatlas.retries": self.retries,
            "kvatlas.outcome": self.outcome,
        }
        is_error = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.outcome == "torn"
        trace.end(told, is_error=is_error)

    def log(self) -> None:
        """Write the line, and end the trace."""
        if self.trace is not None:
            self._end_trace(self.trace)
        _LOG.info(
            "request.finished",
            request_id=self.request_id,
            trace_id=self.trace and self.trace.trace_id,
            path=self.path,
            tenant=self.tenant,
            model=self.model,
            status=self.status,
            outcome=self.outcome,
            endpoint=self.endpoint,
            prompt_tokens=self.prompt_tokens,
            match_tokens=self.match_tokens,
            cached_tokens=self.cached_tokens,
            fallback=self.fallback,
            priority=self.priority,
            retries=self.retries,
            handed_over=self.is_handed_over,
            first_byte_ms=self.first_byte_ms and round(self.first_byte_ms, 2),
            total_ms=round(self.spent_s() * 1e3, 2),
        )


def tell_refused(error: HttpError, path: str, request: Request, metrics: RouterMetrics) -> str:
    """Tell of a request that went no further than the door; what is too much is only counted.

    Args:
        error: that it is answered with.
        path: of a closed set.
        request: the request.
        metrics: told of it.

    Returns:
        The id of the request, which nothing else is known of.
    """
    metrics.requests.labels(UNKNOWN, path, str(error.status)).inc()
    metrics.errors.labels(UNKNOWN, error.code).inc()
    trip_id = chosen_id(request.headers.get("x-request-id"))
    if not isinstance(error, Overloaded):
        _LOG.info(
            "request.refused", request_id=trip_id, path=path, status=error.status, code=error.code
        )
    return trip_id

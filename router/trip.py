"""One request from its arrival to its log line."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from kvatlas.common.clock import monotonic
from kvatlas.common.log import logger
from kvatlas.router.headers import request_id
from kvatlas.router.rates import Grant
from kvatlas.router.usage import Usage

_LOG = logger("router")


def chosen_id(received: str | None) -> str:
    """Take over a client's request id if it is safe to repeat, else make one."""
    return request_id(received) or uuid.uuid4().hex


@dataclass(slots=True)
class Trip:
    """What becomes known of a request on its way.

    Attributes:
        match_tokens: the predicted hit.
        cached_tokens: the actual one, as the engine reported it.
        usage: what the engine reported.
        grant: what it took of its tenant's limits; None where there are none.
        is_handed_over: whether the engine was given our token ids.
    """

    request_id: str
    path: str
    begun: float = field(default_factory=monotonic)
    model: str = "unknown"
    status: int = 0
    endpoint: str | None = None
    prompt_tokens: int | None = None
    match_tokens: int = 0
    cached_tokens: int | None = None
    fallback: str | None = None
    retries: int = 0
    is_handed_over: bool = False
    first_byte_ms: float | None = None
    outcome: str = "answered"
    usage: Usage | None = None
    grant: Grant | None = None

    def began(self) -> float:
        """Note the first byte; give the seconds that it took."""
        spent = monotonic() - self.begun
        self.first_byte_ms = spent * 1e3
        return spent

    def log(self) -> None:
        """Write the line."""
        _LOG.info(
            "request.finished",
            request_id=self.request_id,
            path=self.path,
            model=self.model,
            status=self.status,
            outcome=self.outcome,
            endpoint=self.endpoint,
            prompt_tokens=self.prompt_tokens,
            match_tokens=self.match_tokens,
            cached_tokens=self.cached_tokens,
            fallback=self.fallback,
            retries=self.retries,
            handed_over=self.is_handed_over,
            first_byte_ms=self.first_byte_ms and round(self.first_byte_ms, 2),
            total_ms=round((monotonic() - self.begun) * 1e3, 2),
        )

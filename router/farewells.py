"""Endpoints that are gone, until what is under way there has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.metrics import RouterMetrics


@dataclass(slots=True)
class _Gone:
    """An endpoint that is gone, and when something was last under way there."""

    endpoint: Endpoint
    busy_s: float


class Farewells:
    """Forget what was counted of endpoints that are gone, once nobody counts any more.

    Their last answers are still to be judged, and a round of questions may be under way: what is
    counted then would bring the metrics back.

    Args:
        metrics: told whom to forget.
    """

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._gone: dict[EndpointName, _Gone] = {}

    def __len__(self) -> int:
        return len(self._gone)

    def add(self, endpoint: Endpoint, now_s: float) -> None:
        """See off an endpoint that has left just now."""
        self._gone[endpoint.name] = _Gone(endpoint, now_s)

    def returned(self, name: EndpointName) -> None:
        """Leave it to somebody new of the same name, whom metrics tell of from here on."""
        if name in self._gone:
            self._forget([name])

    def look(self, now_s: float) -> None:
        """Forget those where nothing has been under way for a while."""
        for gone in self._gone.values():
            if gone.endpoint.stand.own_requests:
                gone.busy_s = now_s
        oldest_s = now_s - limits.FAREWELL_S
        self._forget([name for name, gone in self._gone.items() if gone.busy_s <= oldest_s])

    def close(self) -> None:
        """Forget all of them."""
        self._forget(list(self._gone))

    def _forget(self, names: Sequence[EndpointName]) -> None:
        for name in names:
            del self._gone[name]
        if names:
            self._metrics.release("endpoint", names)

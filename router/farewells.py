"""Endpoints that are gone, until what is under way there has ended."""

from __future__ import annotations

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
        if self._gone.pop(name, None) is not None:
            self._metrics.release("endpoint", name)

    def look(self, now_s: float) -> None:
        """Forget those where nothing has been under way for a while."""
        for name, gone in list(self._gone.items()):
            if gone.endpoint.stand.own_requests:
                gone.busy_s = now_s
            elif now_s - gone.busy_s >= limits.FAREWELL_S:
                self.returned(name)

    def close(self) -> None:
        """Forget all of them."""
        for name in list(self._gone):
            self.returned(name)

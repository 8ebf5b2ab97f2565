"""What metrics say of each endpoint, read when their page is written."""

from __future__ import annotations

from functools import partial

from kvatlas.common.clock import monotonic
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.metrics import RouterMetrics


def announce(metrics: RouterMetrics, endpoint: Endpoint) -> None:
    """Let metrics tell of an endpoint, until what is held here of its name is released."""
    name = endpoint.name
    metrics.hold("endpoint", name)
    metrics.in_flight.labels(name).set_function(partial(_in_flight, endpoint))
    metrics.awaiting.labels(name).set_function(partial(_awaiting, endpoint))
    metrics.queued_tokens.labels(name).set_function(partial(_queued_tokens, endpoint))
    metrics.engine_waiting.labels(name).set_function(partial(_waiting, endpoint))
    metrics.gauges_age.labels(name).set_function(partial(_gauges_age_s, endpoint))


def _in_flight(endpoint: Endpoint) -> float:
    return endpoint.stand.own_requests


def _awaiting(endpoint: Endpoint) -> float:
    return endpoint.awaiting


def _queued_tokens(endpoint: Endpoint) -> float:
    return endpoint.queued_tokens


def _waiting(endpoint: Endpoint) -> float:
    return endpoint.waiting


def _gauges_age_s(endpoint: Endpoint) -> float:
    return endpoint.gauges_age_s(monotonic())

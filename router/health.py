"""What requests and looks say of endpoints' health, told to logs and metrics."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import Final

from kvatlas.common.clock import monotonic
from kvatlas.common.ids import ModelName
from kvatlas.common.log import logger
from kvatlas.common.settings import EjectionSettings
from kvatlas.router.ejection import Pool, Reason, Rules
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.metrics import RouterMetrics

_LOG = logger("health")
_UNREACHED: Final = frozenset({"connect", "connect_timeout", "tls"})


class Health:
    """The health of all endpoints, a pool per model.

    Args:
        models: that there are.
        options: when to eject.
        metrics: told who is out.
    """

    def __init__(
        self, models: Iterable[ModelName], options: EjectionSettings, metrics: RouterMetrics
    ) -> None:
        rules = Rules(
            options.failures,
            options.share,
            options.requests_min,
            options.pause_s,
            options.pause_max_s,
            options.ejected_max,
        )
        chance = random.Random()  # noqa: S311 - jitter
        self._pools = {model: Pool(rules, chance.random) for model in models}
        self._metrics = metrics
        for model, pool in self._pools.items():
            metrics.panic.labels(model).set_function(partial(_is_panicking, pool))

    def join(self, endpoint: Endpoint) -> None:
        """Follow an endpoint."""
        self._pools[endpoint.model].join(endpoint.standing)
        self._metrics.healthy.labels(endpoint.name).set_function(partial(_answers, endpoint))
        self._metrics.ejected.labels(endpoint.name).set_function(partial(_is_ejected, endpoint))

    def leave(self, endpoint: Endpoint) -> None:
        """Follow an endpoint no longer; what its last requests tell changes nothing."""
        self._pools[endpoint.model].leave(endpoint.standing)

    def weigh(self, model: ModelName) -> None:
        """Decide anew who takes requests, when endpoints have joined or left."""
        self._pools[model].weigh()

    def is_all_away(self, model: ModelName) -> bool:
        """Tell whether nobody answers."""
        return self._pools[model].is_all_away

    def failed(self, endpoint: Endpoint, kind: str, *, is_reused: bool = False) -> None:
        """Note that a request failed there.

        Args:
            endpoint: that it was sent to.
            kind: how, as `outbound.Kind`, or "status".
            is_reused: it was on a connection that the engine may just have closed for being idle,
                which says nothing of the engine but makes us look.
        """
        endpoint.failures += 1
        if endpoint.is_gone:
            return
        pool, standing = self._pools[endpoint.model], endpoint.standing
        if kind in _UNREACHED:
            self._tell_out(endpoint, pool.unanswered(standing))
        elif not (is_reused and kind == "disconnected"):
            self._tell_out(endpoint, pool.failed(standing, monotonic()))

    def refused(self, endpoint: Endpoint) -> None:
        """Note that it answered a request with an error of its own."""
        if endpoint.is_gone:
            return
        pool = self._pools[endpoint.model]
        self._tell_out(endpoint, pool.failed(endpoint.standing, monotonic()))

    def answered(self, endpoint: Endpoint, *, is_new: bool = False) -> None:
        """Note an answer to a look, or the first byte of one to a request.

        Args:
            endpoint: of whom.
            is_new: its process is another one than before.
        """
        if endpoint.is_gone:
            return
        pool = self._pools[endpoint.model]
        if pool.answered(endpoint.standing, monotonic(), is_new=is_new):
            _LOG.warning("endpoint.returned", endpoint=endpoint.name)

    def unanswered(self, endpoint: Endpoint) -> None:
        """Note a look without an answer."""
        if endpoint.is_gone:
            return
        self._tell_out(endpoint, self._pools[endpoint.model].unanswered(endpoint.standing))

    def _tell_out(self, endpoint: Endpoint, reason: Reason | None) -> None:
        if reason is not None:
            self._metrics.ejections.labels(endpoint.name, reason).inc()
            _LOG.warning("endpoint.ejected", endpoint=endpoint.name, reason=reason)


def _answers(endpoint: Endpoint) -> float:
    return float(not endpoint.standing.is_away)


def _is_ejected(endpoint: Endpoint) -> float:
    return float(endpoint.standing.is_ejected)


def _is_panicking(pool: Pool) -> float:
    return float(pool.is_panicking)

"""How long to wait until the API server is asked again. Pure."""

from __future__ import annotations

from collections.abc import Callable

from kvatlas.common import limits
from kvatlas.common.errors import KubernetesUnavailable

Chance = Callable[[], float]
"""Draws a number that is at least 0 and below 1."""


class Pauses:
    """Wait longer with each failure, and never as long as others do.

    Args:
        chance: to draw with.
    """

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._failures = 0

    def went_on(self) -> None:
        """Note that something new was heard, or nothing for as long as agreed."""
        self._failures = 0

    def after(self, error: KubernetesUnavailable) -> float:
        """Give the seconds to wait after a failure."""
        self._failures += 1
        if error.reason == "absent":
            return self._less(limits.KUBE_ABSENT_PAUSE_S)
        is_denied = error.reason in ("forbidden", "unauthorized")
        first = limits.KUBE_DENIED_PAUSE_S if is_denied else limits.KUBE_PAUSE_S
        # The exponent is bounded, since the number would outgrow a float.
        pause = self._less(first * 2 ** min(self._failures - 1, 20))
        return min(max(pause, error.retry_after_s or 0.0), limits.KUBE_PAUSE_MAX_S)

    def _less(self, pause_s: float) -> float:
        return min(pause_s, limits.KUBE_PAUSE_MAX_S) * (1 - self._chance() / 2)

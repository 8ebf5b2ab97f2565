"""Leave alone what fails again and again, and try it now and then. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable


class Breaker:
    """Leave a service alone after failures in a row; then let one request try it again.

    Args:
        failures_max: failures in a row that are borne.
        pause_s: seconds until the next try.
        clock: seconds on a monotonic scale.
    """

    def __init__(self, failures_max: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._failed_at = -math.inf
        self._closed_until = 0.0

    def lets_through(self) -> bool:
        """Tell whether to ask; the one that tries again keeps the others out meanwhile."""
        if self._failures < self._failures_max:
            return True
        now = self._clock()
        if now < self._closed_until:
            return False
        self._closed_until = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """Note an answer."""
        self._failures = 0

    def failed(self, asked_at: float = math.inf) -> None:
        """Note that there was none, or none that can be used.

        Args:
            asked_at: when it was asked. Questions that were under way together fail together:
                those asked before the last failure was noted count once.
        """
        if asked_at < self._failed_at:
            return
        self._failed_at = self._clock()
        self._failures += 1
        if self._failures >= self._failures_max:
            self._closed_until = self._failed_at + self._pause_s

"""Pauses that grow while something fails, and differ from process to process. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """The pauses of one thing that may fail.

    Attributes:
        first_s: after the first failure; doubles with each.
        most_s: longest.
        jitter: share by which a pause may be shorter.
        draw: gives a number in [0, 1).
    """

    first_s: float
    most_s: float
    jitter: float
    draw: Callable[[], float]
    _next_s: float = 0.0

    def pause_s(self) -> float:
        """Note a failure; say how long to wait."""
        pause_s = min(self.most_s, self._next_s or self.first_s)
        self._next_s = min(self.most_s, 2.0 * pause_s)
        return pause_s * (1.0 - self.jitter * self.draw())

    def reset(self) -> None:
        """Note that it is well."""
        self._next_s = 0.0

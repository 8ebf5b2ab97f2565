"""When something was, by our own clock, that Redis stamped with its clock. Pure.

What is read was written before it is read, so the least time seen between a stamp and its reading
is closest to the difference of the clocks. Clocks drift and servers change: only what was seen
lately counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 10.0
"""After which a difference that was seen is forgotten, at the latest after twice that."""


@dataclass(slots=True)
class RedisTime:
    """The difference between the clock of Redis and our own."""

    _least_s: float = float("inf")
    _least_before_s: float = float("inf")
    _since_s: float = float("-inf")

    def local(self, redis_s: float, now_s: float) -> float:
        """Tell when an entry was written.

        Args:
            redis_s: its stamp.
            now_s: by our clock, after it was read.

        Returns:
            A moment of our clock, not after now.
        """
        seen_s = now_s - redis_s
        if now_s - self._since_s > WINDOW_S:
            self._least_before_s, self._least_s = self._least_s, seen_s
            self._since_s = now_s
        self._least_s = min(self._least_s, seen_s)
        return min(now_s, redis_s + min(self._least_s, self._least_before_s))

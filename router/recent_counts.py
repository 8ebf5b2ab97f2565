"""How many there were at a moment that is over. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT_S: Final = 5.0
"""Longer than a sample of gauges is believed."""


class RecentCounts:
    """A count, and what it was in the last few seconds, as far as somebody looked."""

    __slots__ = ("_changes",)

    def __init__(self) -> None:
        self._changes: deque[tuple[float, int]] = deque([(float("-inf"), 0)])

    def note(self, now_s: float, count: int) -> None:
        """Note what it is; times never fall from call to call.

        Cost: 60 ns where it is as before.
        """
        changes = self._changes
        if changes[-1][1] == count:
            return
        changes.append((now_s, count))
        while changes[1][0] <= now_s - KEPT_S:
            changes.popleft()

    def most(self, from_s: float, to_s: float) -> int:
        """Give the highest count that was known at a time in [from_s, to_s]."""
        most = 0
        for since_s, count in reversed(self._changes):
            if since_s <= to_s:
                most = max(most, count)
            if since_s <= from_s:
                break
        return most

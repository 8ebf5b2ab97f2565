"""How much of what costs a peer nothing it may send."""

from __future__ import annotations


class Budget:
    """A bucket of tokens.

    Args:
        most: that are in it, and are at the beginning.
        per_s: that come back.
    """

    __slots__ = ("_left", "_most", "_per_s", "_seen_s")

    def __init__(self, most: int, per_s: float) -> None:
        self._most = self._left = float(most)
        self._per_s = per_s
        self._seen_s = 0.0

    def spend(self, now_s: float) -> bool:
        """Take one; False where there is none."""
        if self._seen_s:
            self._left = min(self._most, self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def earn(self, tokens: float) -> None:
        """Give some back."""
        self._left = min(self._most, self._left + tokens)

"""How many requests may be sent a second time at once. Pure.

Retries make a fleet that is short of engines shorter still; so they get a share of what is under
way, and a few whatever that is.
"""

from __future__ import annotations


class RetryBudget:
    """Bound the retries under way.

    Args:
        share: of the requests under way that may be retries.
        at_least: that always may.

    Attributes:
        under_way: retries that have been granted and not ended.
    """

    def __init__(self, share: float, at_least: int) -> None:
        self._share = share
        self._at_least = at_least
        self.under_way = 0

    def take(self, requests: int) -> bool:
        """Begin a retry, if it may be.

        Args:
            requests: under way, those that are retried included.
        """
        if self.under_way >= max(self._at_least, int(self._share * requests)):
            return False
        self.under_way += 1
        return True

    def give_back(self) -> None:
        """End a retry that was begun."""
        self.under_way -= 1

"""When an endpoint's hits are worth announcing, because its cache is known in part. Pure.

An engine announces what it stores and what it evicts, never what it hits. An epoch that began in
the middle of its life (the replay did not reach back) is blind to what was cached before and stays
hot. Routers then ask engines to announce hits as well (vLLM: `kv_cache_report_mode`). Such an
announcement looks like a second copy, so meanwhile a block that is present is not counted again:
a real second copy goes uncounted, and the block is taken for gone when the first one goes.
"""

from __future__ import annotations

from typing import Final

from kvatlas.common import limits

NEVER: Final = float("-inf")


class Relearning:
    """Whether one endpoint's hits are asked for, and copies counted."""

    def __init__(self) -> None:
        self._is_new = False
        self._asks_until = NEVER
        self._counts_from = NEVER

    def new_epoch(self) -> None:
        """Note that everything was forgotten; the next batch tells how much can be known again."""
        self._is_new = True

    def batch(self, seq: int, now: float, *, is_oldest: bool) -> None:
        """Note the sequence of a batch; in a new epoch the first one says what is missing.

        Args:
            seq: 0 is the first of an engine's life.
            now: monotonic seconds.
            is_oldest: the engine has none before it. Of a replay that failed nothing is known:
                a later one may bring the announcements again, behind the engine's first batch,
                where they would be counted.
        """
        if not self._is_new:
            return
        self._is_new = False
        if seq == 0:
            self.cleared()
        elif is_oldest:
            self._asks_until = now + limits.RELEARN_S
            self._counts_from = self._asks_until + limits.RELEARN_GRACE_S

    def cleared(self) -> None:
        """Note that the engine began with nothing, or holds nothing: all that comes is known."""
        self._asks_until = self._counts_from = NEVER

    def is_asking(self, now: float) -> bool:
        """Tell whether routers should have hits announced."""
        return now < self._asks_until

    def is_counting(self, now: float) -> bool:
        """Tell whether a store of a present block is a further copy of it."""
        return now >= self._counts_from

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
        self.counted_from: int | None = 0
        """Sequence from which on copies are counted; None while none is named yet."""

    def resume(self, counted_from: int | None, asks_s: float, now: float) -> None:
        """Go on where another owner of the endpoint has stopped.

        Args:
            counted_from: as it stood.
            asks_s: seconds for which hits were still to be asked for.
            now: monotonic seconds.
        """
        self.counted_from = counted_from
        self._asks_until = now + asks_s

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
        if self._is_new:
            self._is_new = False
            if seq == 0:
                self.cleared(seq)
            elif is_oldest:
                self._asks_until = now + limits.RELEARN_S
                self.counted_from = None
            elif self.counted_from is not None:
                self.counted_from = seq
        if self.counted_from is None and now >= self._asks_until + limits.RELEARN_GRACE_S:
            self.counted_from = seq

    def cleared(self, seq: int) -> None:
        """Note that with this batch the engine holds nothing of before: all that comes is known."""
        self._asks_until = NEVER
        self.counted_from = seq

    def asks_s(self, now: float) -> float:
        """Give the seconds for which routers should still have hits announced."""
        return max(0.0, self._asks_until - now)

    def counts(self, seq: int) -> bool:
        """Tell whether a store of a present block in this batch is a further copy of it."""
        return self.counted_from is not None and seq >= self.counted_from

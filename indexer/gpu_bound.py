"""How many blocks an endpoint may hold on its GPU, by its engine's own gauges. Pure.

A block of the GPU has one hash of one KV-cache group, so all groups together hold no more than
`num_gpu_blocks`. Where an engine does not tell it, there is no such bound. What was told is
believed for a while after the last look that told it: an engine that cannot be looked at any more
may have been restarted with a larger cache, and one that is off the net for a moment has not.
"""

from __future__ import annotations

from kvatlas.common import limits
from kvatlas.common.gauges import SharedSample

NEVER = float("-inf")


class GpuBound:
    """The bound of one endpoint."""

    def __init__(self) -> None:
        self._at_ms: int | None = None
        self._blocks = 0
        self._until = NEVER

    def told(self, told: SharedSample | None, now: float) -> None:
        """Take what the shared gauges say of the endpoint; the same sample again says nothing.

        Args:
            told: as it stands there.
            now: monotonic seconds.
        """
        if told is None or told.at_ms == self._at_ms:
            return
        self._at_ms = told.at_ms
        if told.sample.gauges.blocks:
            self._blocks = told.sample.gauges.blocks
            self._until = now + limits.GPU_BLOCKS_KEPT_S

    def most(self, now: float) -> int | None:
        """Give how many blocks there may be at most, None where it is not known."""
        if now > self._until:
            return None
        slack = max(limits.GPU_BLOCKS_SLACK_MIN, int(self._blocks * limits.GPU_BLOCKS_SLACK))
        return self._blocks + slack

"""One endpoint's way from messages to the mirror: sequence, decode, apply."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kvatlas.common.clock import monotonic
from kvatlas.common.errors import MalformedBatch
from kvatlas.common.log import logger
from kvatlas.indexer.decode import decode
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.sequence import NewEpoch, Ready, Sequencer

_LOG = logger("feed")


class Feed:
    """Take one endpoint's messages in, in whatever order, and keep its cache and mirror true.

    The subscriber calls the inputs of `sequencer` and then `pump`.
    """

    def __init__(self, mirror: Mirror, metrics: IndexerMetrics, *, has_replay: bool) -> None:
        name = mirror.target.name
        self.name = name
        self.sequencer = Sequencer(has_replay=has_replay)
        self.cache = mirror.cache
        self.mirror = mirror
        self._metrics = metrics
        self._counted: Counter[str] = Counter()
        self._batches: Any = metrics.batches.labels(name)
        self._events: Any = metrics.events.labels(name)

    def pump(self) -> None:
        """Work off every step that is ready."""
        while (step := self.sequencer.next_step()) is not None:
            if isinstance(step, NewEpoch):
                _LOG.info("epoch.ended", endpoint=self.name, reason=step.reason)
                self.cache.forget()
                self.mirror.forget(step.reason)
            else:
                self._apply(step)
        self._count_sequence()

    def reject(self, reason: str) -> None:
        """Note a message that does not even have a sequence."""
        self._metrics.rejected.labels(self.name, reason).inc()
        _LOG.warning("batch.rejected", endpoint=self.name, reason=reason)
        self.sequencer.unreadable(monotonic())

    def _apply(self, step: Ready) -> None:
        try:
            batch = decode(step.payload)
        except MalformedBatch as error:
            skipped = self.sequencer.rejected(step, monotonic())
            self._metrics.rejected.labels(self.name, error.reason).inc()
            _LOG.warning(
                "batch.rejected",
                endpoint=self.name,
                seq=step.seq,
                reason=error.reason,
                skipped=skipped,
            )
            return
        delta = self.cache.apply(batch)
        self.mirror.update(step.seq, batch.time_s, delta)
        self._batches.inc()
        self._events.inc(len(batch.events))
        if batch.unknown:
            self._metrics.unknown_events.inc(batch.unknown)
        if delta.orphans:
            self._metrics.orphans.labels(self.name).inc(delta.orphans)
        if delta.unknown_removed:
            self._metrics.unknown_removed.labels(self.name).inc(delta.unknown_removed)
        if delta.over_limit:
            self._metrics.over_limit.labels(self.name).inc(delta.over_limit)

    def _count_sequence(self) -> None:
        counts = self.sequencer.counts
        if counts == self._counted:
            return
        for what, count in (counts - self._counted).items():
            self._metrics.sequence.labels(self.name, what).inc(count)
        self._counted = counts.copy()

"""One endpoint's way from messages to the mirror: sequence, decode, apply."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import MalformedBatch
from kvatlas.common.ids import Epoch
from kvatlas.common.log import logger
from kvatlas.common.redis_client import RedisArg
from kvatlas.indexer.apply import Delta
from kvatlas.indexer.decode import decode
from kvatlas.indexer.events import Batch
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.relearning import Relearning
from kvatlas.indexer.sequence import NewEpoch, Ready, Sequencer

_LOG = logger("feed")


class Feed:
    """Take one endpoint's messages in, in whatever order, and keep its cache and mirror true.

    The subscriber calls the inputs of `sequencer` and then `pump`.

    Args:
        mirror: what Redis is to learn.
        metrics: told of everything.
        has_replay: whether replays can be asked for.
        block_size: that routers hash the model's prompts by, where it is configured.
    """

    def __init__(
        self,
        mirror: Mirror,
        metrics: IndexerMetrics,
        *,
        has_replay: bool,
        block_size: int | None = None,
    ) -> None:
        name = mirror.target.name
        self.name = name
        self.sequencer = Sequencer(has_replay=has_replay)
        self._has_replay = has_replay
        self.cache = mirror.cache
        self.mirror = mirror
        self._metrics = metrics
        self._relearning = Relearning()
        self._lost_at: float | None = None
        self._wanted_size = block_size
        self._found_size = 0
        self.orphans = 0
        self.unknown_removed = 0
        self._counted: Counter[str] = Counter()
        self._batches: Any = metrics.batches.labels(name)
        self._events: Any = metrics.events.labels(name)

    @property
    def phase(self) -> str:
        """Say how the endpoint is followed: the sequencer's phase, or "stale"."""
        return "stale" if self.mirror.is_withdrawn else self.sequencer.phase

    def tick(self, now: float) -> None:
        """Let time pass; an endpoint that was followed and is lost for long has no matches."""
        self.sequencer.tick(now)
        if self.sequencer.phase != "connecting" or self.sequencer.last_seq is None:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > limits.FEED_LOST_S and not self.mirror.is_withdrawn:
            _LOG.warning("endpoint.stale", endpoint=self.name)
            self.mirror.withdraw("stale")

    def pump(self) -> None:
        """Work off every step that is ready."""
        while (step := self.sequencer.next_step()) is not None:
            if isinstance(step, NewEpoch):
                _LOG.info("epoch.ended", endpoint=self.name, reason=step.reason)
                self.cache.forget(engine_gone=step.reason == "restart")
                self.mirror.forget(step.reason)
                self._relearning.new_epoch()
            else:
                self._apply(step)
        if self.mirror.is_withdrawn and self.sequencer.phase == "live":
            # The same life of the same engine, or this would be another epoch.
            self.mirror.restore("back")
        self._count_sequence()

    def doubt(self, epoch: Epoch) -> None:
        """Take a router's word that the predictions of an epoch run over.

        Of another epoch than the one that stands it says nothing.
        """
        if epoch != self.mirror.epoch:
            return
        self._metrics.doubts.labels(self.name).inc()
        _LOG.warning("endpoint.doubted", endpoint=self.name, epoch=epoch)
        self.sequencer.overpredicted(monotonic())
        self.pump()

    def stand(self) -> dict[str, RedisArg]:
        """Say how the indexer stands with the endpoint, for `kvatlas doctor` and people."""
        counts = self.sequencer.counts
        return {
            "phase": self.phase,
            "gaps": counts["gap"],
            "replays": counts["replay"],
            "orphans": self.orphans,
            "unknown_removals": self.unknown_removed,
            "relearning": self._relearned_epoch(),
        }

    def _relearned_epoch(self) -> str:
        """Name the epoch in which routers should have hits announced, or give an empty text.

        In groups with windows an engine would announce blocks that it does not hold there.
        """
        epoch = self.mirror.epoch
        is_asking = self._relearning.is_asking(monotonic()) and self.cache.groups.are_full
        return str(epoch) if is_asking and epoch is not None else ""

    def reject(self, reason: str) -> None:
        """Note a message that does not even have a sequence."""
        self._metrics.rejected.labels(self.name, reason).inc()
        _LOG.warning("batch.rejected", endpoint=self.name, reason=reason)
        self.sequencer.unreadable(monotonic())

    def _apply(self, step: Ready) -> None:
        now = monotonic()
        is_oldest = step.is_replayed or not self._has_replay
        self._relearning.batch(step.seq, now, is_oldest=is_oldest)
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
        delta = self.cache.apply(batch, counts_copies=self._relearning.is_counting(now))
        if delta.cleared:
            self._relearning.cleared()
        self.mirror.update(step.seq, batch.time_s, delta)
        self._count_batch(batch, delta)

    def _count_batch(self, batch: Batch, delta: Delta) -> None:
        self._batches.inc()
        self._events.inc(len(batch.events))
        if batch.unknown:
            self._metrics.unknown_events.inc(batch.unknown)
        if delta.regrouped:
            _LOG.info("groups.changed", endpoint=self.name, fault=self.cache.groups.fault)
        if delta.regrouped or self.cache.block_size != self._found_size:
            self._note_fit()
        if delta.orphans:
            self.orphans += delta.orphans
            self._metrics.orphans.labels(self.name).inc(delta.orphans)
        if delta.unknown_removed:
            self.unknown_removed += delta.unknown_removed
            self._metrics.unknown_removed.labels(self.name).inc(delta.unknown_removed)
        if delta.over_limit:
            self._metrics.over_limit.labels(self.name).inc(delta.over_limit)

    def _note_fit(self) -> None:
        """Say whether the endpoint's blocks can match at all, when it may have changed."""
        found, wanted = self.cache.block_size, self._wanted_size
        is_odd = bool(found and wanted and found != wanted)
        if is_odd and found != self._found_size:
            # Its blocks stand in the index by another hash than routers ask for.
            _LOG.error("endpoint.incompatible", endpoint=self.name, found=found, wanted=wanted)
        self._found_size = found
        fault = self.cache.groups.fault
        self._metrics.unmatched.labels(self.name).set(is_odd or fault is not None)

    def _count_sequence(self) -> None:
        counts = self.sequencer.counts
        if counts == self._counted:
            return
        for what, count in (counts - self._counted).items():
            self._metrics.sequence.labels(self.name, what).inc(count)
        self._counted = counts.copy()

"""One endpoint's way from messages to the mirror: sequence, decode, apply."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import MalformedBatch
from kvatlas.common.gauges import SharedSample
from kvatlas.common.ids import Epoch
from kvatlas.common.log import logger
from kvatlas.common.redis_client import RedisArg
from kvatlas.indexer.apply import Delta
from kvatlas.indexer.decode import decode
from kvatlas.indexer.events import Batch
from kvatlas.indexer.gpu_bound import GpuBound
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.recall import Recall
from kvatlas.indexer.relearning import Relearning
from kvatlas.indexer.sequence import NewEpoch, Ready, Sequencer
from kvatlas.indexer.targets import Progress

_LOG = logger("feed")

RELEARN_STEP_S: Final = 10
"""Steps in which the time that relearning still takes is told: a change is a write."""


class Feed:
    """Take one endpoint's messages in, in whatever order, and keep its cache and mirror true.

    The subscriber calls the inputs of `sequencer` and then `pump`.

    Args:
        mirror: of the endpoint.
        metrics: of the process.
        has_replay: whether the endpoint has a replay socket.
        recall: what a former owner has left; the mirror's cache is the recall's then.
        block_size: that routers hash the model's prompts by, where it is configured.
    """

    def __init__(
        self,
        mirror: Mirror,
        metrics: IndexerMetrics,
        *,
        has_replay: bool,
        recall: Recall | None = None,
        block_size: int | None = None,
    ) -> None:
        name = mirror.target.name
        self.name = name
        self._recall = recall
        resumption = recall.resumption if recall else None
        self.sequencer = Sequencer(has_replay=has_replay, resumption=resumption)
        self._has_replay = has_replay
        self.cache = mirror.cache
        self.mirror = mirror
        self._metrics = metrics
        self._relearning = Relearning()
        self._gpu_bound = GpuBound()
        self._was_over = False
        self._lost_at: float | None = None
        self._wanted_size = block_size
        self._found_size = 0
        self.orphans = 0
        self.unknown_removed = 0
        self._counted: Counter[str] = Counter()
        self._taken = self._taken_events = 0
        self._batches: Any = metrics.batches.labels(name)
        self._events: Any = metrics.events.labels(name)
        if recall:
            counted_from, asks_s = recall.outline.counted_from, recall.relearn_s
            self._relearning.resume(counted_from, asks_s, monotonic())
            self._resume_if_whole(recall.resumption.first - 1)

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
                self._recall = None
                self.cache.forget(engine_gone=step.reason == "restart")
                self.mirror.forget(step.reason)
                self._relearning.new_epoch()
            else:
                self._apply(step)
        if self.mirror.is_withdrawn and self.sequencer.phase == "live":
            # The same life of the same engine, or this would be another epoch.
            self.mirror.restore("back")
        self._count_taken()
        self._count_sequence()

    def measure(self) -> None:
        """Tell the metrics how the endpoint stands."""
        epoch, seq = self.mirror.epoch, self.sequencer.last_seq
        if epoch is not None:
            self._metrics.epoch.labels(self.name).set(epoch)
        if seq is not None:
            self._metrics.seq.labels(self.name).set(seq)
        self._metrics.blocks.labels(self.name).set(self.cache.held)

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

    def told(self, told: SharedSample | None, now: float) -> None:
        """Take what the shared gauges say of the engine, None for nothing.

        An endpoint that holds more than it can, told so twice, is in doubt: once may be a restart
        with a smaller cache, of which the gauges tell before the events do.
        """
        self._gpu_bound.told(told, now)
        most = self._gpu_bound.most(now)
        self._metrics.gpu_blocks_max.labels(self.name).set(most or 0)
        # What is recalled must become what the index has.
        self.cache.gpu_max = most if self._recall is None else None
        is_over = most is not None and self.cache.held_on_gpu > most
        if is_over and self._was_over and self.sequencer.phase == "live":
            self._overclaimed(now)
            self.pump()
        self._was_over = is_over

    def stand(self) -> dict[str, RedisArg]:
        """Say how the indexer stands with the endpoint, for `kvatlas doctor` and people."""
        counts = self.sequencer.counts
        asks_s = self._relearning.asks_s(monotonic())
        return {
            "phase": self.phase,
            "gaps": counts["gap"],
            "replays": counts["replay"],
            "orphans": self.orphans,
            "unknown_removals": self.unknown_removed,
            "relearning": self._relearned_epoch(),
            "relearn_s": RELEARN_STEP_S * math.ceil(asks_s / RELEARN_STEP_S),
        }

    def _relearned_epoch(self) -> str:
        """Name the epoch in which routers should have hits announced, or give an empty text.

        In groups with windows an engine would announce blocks that it does not hold there.
        """
        epoch = self.mirror.epoch
        is_asking = self._relearning.asks_s(monotonic()) > 0 and self.cache.groups.are_full
        return str(epoch) if is_asking and epoch is not None else ""

    def reject(self, reason: str) -> None:
        """Note a message that does not even have a sequence."""
        self._metrics.rejected.labels(self.name, reason).inc()
        _LOG.warning("batch.rejected", endpoint=self.name, reason=reason)
        self.sequencer.unreadable(monotonic())

    def _apply(self, step: Ready) -> None:
        batch = self._decoded(step)
        if self._recall is not None:
            self._recollect(self._recall, step, batch)
            return
        now, relearning = monotonic(), self._relearning
        is_oldest = step.is_replayed or not self._has_replay
        relearning.batch(step.seq, now, is_oldest=is_oldest)
        if batch is None:
            return
        delta = self.cache.apply(batch, counts_copies=relearning.counts(step.seq))
        if delta.cleared:
            relearning.cleared(step.seq)
        progress = Progress(step.seq, batch.time_s, step.digest)
        self.mirror.update(progress, delta, relearning.counted_from)
        self._count_batch(batch, delta)
        if delta.overclaimed:
            self._metrics.overclaimed.labels(self.name).inc(delta.overclaimed)
            self._overclaimed(now)

    def _overclaimed(self, now: float) -> None:
        """Doubt an endpoint that claims more than its engine says that it can hold.

        What it claims again after the doubt is doubted again, after a pause that grows.
        """
        most = self.cache.gpu_max
        _LOG.warning("endpoint.overclaimed", endpoint=self.name, gpu_blocks_max=most)
        self.sequencer.overclaimed(now)

    def _decoded(self, step: Ready) -> Batch | None:
        """Read a batch; None for one that cannot be read."""
        try:
            return decode(step.payload)
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
            return None

    def _recollect(self, recall: Recall, step: Ready, batch: Batch | None) -> None:
        """Take a batch that the index has, for the pages that have not."""
        if batch is not None:
            counts = self._relearning.counts(step.seq)
            recall.take(batch, step.seq, counts_copies=counts)
        self._resume_if_whole(step.seq)

    def _resume_if_whole(self, seq: int) -> None:
        """Let the mirror go on as soon as the cache is what the index was written from."""
        recall = self._recall
        if recall is not None and seq >= recall.proven.seq:
            self._recall = None
            self.mirror.resume(recall)

    def _count_batch(self, batch: Batch, delta: Delta) -> None:
        self._taken += 1
        self._taken_events += len(batch.events)
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

    def _count_taken(self) -> None:
        """Count batches and events together: an increment takes as long as half a batch."""
        if self._taken:
            self._batches.inc(self._taken)
            self._events.inc(self._taken_events)
            self._taken = self._taken_events = 0

    def _count_sequence(self) -> None:
        counts = self.sequencer.counts
        if counts == self._counted:
            return
        for what, count in (counts - self._counted).items():
            self._metrics.sequence.labels(self.name, what).inc(count)
        self._counted = counts.copy()

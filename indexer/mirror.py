"""What Redis must still learn of one endpoint.

Per entry only the newest state is kept, so what waits is bounded by the cache and not by the rate
of events, and a burst becomes few script calls. The counts in memory are the truth and Redis is
their mirror: when a write is refused, lost or overdue, a new epoch is opened and everything is
written from memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import Fenced, IndexUnavailable, WrongEpoch
from kvatlas.common.ids import Epoch, Fence, HolderId, Pool
from kvatlas.common.keyspace import Holder
from kvatlas.common.kv_groups import WINDOWED_KINDS
from kvatlas.common.log import logger
from kvatlas.common.redis_client import RedisArg
from kvatlas.indexer.apply import Delta, EndpointCache
from kvatlas.indexer.memory_writer import MemoryWriter, Parcel
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.pending import Pending, overlay, parts_of, removals, size
from kvatlas.indexer.recall import Recall
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.targets import BEFORE_FIRST, Change, Opening, Position, Progress, Target

_LOG = logger("mirror")

RETRY_S = 0.1
RETRY_MAX_S = 2.0
FINISH_POLL_S = 0.01
NO_PARCEL: Final = Parcel()
FULL = "oom"
"""Redis is at its maxmemory and drops nothing."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the blocks of one pool go: under which holder, and into which buckets."""

    holder: HolderId
    windowed: bool


class Mirror:
    """Keep Redis equal to one endpoint's cache.

    `forget`, `update`, `resume` and `rewrite` note what happened and return at once; `run` writes.
    """

    def __init__(
        self,
        target: Target,
        cache: EndpointCache,
        store: IndexStore,
        metrics: IndexerMetrics,
    ) -> None:
        self.target = target
        self.cache = cache
        self._store = store
        self._metrics = metrics
        self._pending: Pending = {}
        self._reopen: str | None = None
        self._from_memory = False
        self._newest = Progress(BEFORE_FIRST, 0.0)
        self._at: Position | None = None
        self._attempted: Position | None = None
        self._believed: Epoch | None = None
        self._slots: dict[Pool, _Slot] = {}
        self._wake = asyncio.Event()
        self._doubtful = False
        self._refused = False
        self.is_fenced = False
        """Whether a write was refused because of another owner; nothing is written meanwhile."""
        self._roots = self._opened_roots = 0
        """How often all was forgotten; and as of the newest epoch, which tells a successor."""
        self._memory = MemoryWriter(cache, self._root())
        self._updated_at = 0.0
        self._behind_by: int | None = None
        """Which pages of memory the next write takes along; see `MemoryWriter.parcel`."""
        self.is_withdrawn = False
        """Whether Redis is to hold nothing of the endpoint for now, whatever its cache holds."""
        self.lag_s = 0.0
        """From the newest event's time stamp to its being in Redis, at the last write."""
        self.failing: str | None = None
        """Why the last write failed, if it did."""

    @property
    def epoch(self) -> Epoch | None:
        """Give the epoch that readers see; None while another one is about to be opened."""
        return None if self._at is None or self._is_reopening() else self._at.epoch

    @property
    def is_current(self) -> bool:
        """Tell whether Redis has been told everything that it is to know."""
        at = self._at
        if self._reopen or at is None:
            return False
        return self.is_withdrawn or at.seq == self._newest.seq

    def forget(self, reason: str) -> None:
        """Open a new epoch: all that was known to be present is forgotten."""
        self.is_withdrawn = False
        self._roots += 1
        self._memory.forget(self._root())
        self._clear(reason)

    def resume(self, recall: Recall) -> None:
        """Go on where a former owner stopped: the cache is what its newest batch left."""
        self._newest = recall.proven
        self._memory.resume(recall.outline, recall.stamps)
        if self.is_withdrawn:
            self.restore("back")
        elif recall.position.seq == recall.proven.seq:
            self._at, self._believed = recall.position, recall.position.epoch
        else:
            self.rewrite("unfinished")
        self._wake.set()

    def update(self, to: Progress, delta: Delta, counted_from: int | None) -> None:
        """Note what a batch changed.

        Args:
            to: the batch.
            delta: its changes.
            counted_from: sequence from which on copies are counted, None while they are not.
        """
        if delta.cleared:
            self._clear("cleared")
        self._newest = to
        self._updated_at = monotonic()
        self._memory.batch(to.seq, counted_from)
        if delta.regrouped:
            self.rewrite("regrouped")
        elif not self._from_memory and not self.is_withdrawn:
            overlay(self._pending, delta.present)
        self._wake.set()

    def tick(self, now: float) -> None:
        """Let time pass; call it a few times a second.

        Memory is written down in quiet hours, and what waits is bounded: looked at here and not
        with every batch, so that a tick's batches may exceed it.
        """
        if size(self._pending) > limits.PENDING_OPS_MAX:
            self.rewrite("overflow")
        is_quiet = now - self._updated_at >= limits.MEMORY_IDLE_S
        by = limits.MEMORY_BEHIND_BATCHES
        if is_quiet and self._at is not None and self._memory.is_behind(self._newest.seq, by):
            self._behind_by = by
            self._wake.set()

    async def finish(self) -> None:
        """Wait until Redis has been told everything, and all is written down."""
        while not (self.is_fenced or self._is_finished()):
            self._behind_by = 0
            self._wake.set()
            await asyncio.sleep(FINISH_POLL_S)

    def fence_changed(self, fence: Fence) -> None:
        """Go on under another claim, after Redis lost the one before; see what else it lost."""
        self.target = replace(self.target, fence=fence)
        self.is_fenced = False
        self.check()

    def withdraw(self, reason: str) -> None:
        """Open a new epoch and leave it empty until `forget` or `restore`; memory is kept."""
        self.is_withdrawn = True
        self.rewrite(reason)

    def restore(self, reason: str) -> None:
        """Vouch again for what memory holds."""
        self.is_withdrawn = False
        self.rewrite(reason)

    def rewrite(self, reason: str) -> None:
        """Open a new epoch and write all that is present, and vouched for, from memory."""
        _LOG.warning("mirror.rewritten", endpoint=self.target.name, reason=reason)
        self._metrics.rewrites.labels(reason).inc()
        self._pending.clear()
        self._reopen = reason
        self._from_memory = not self.is_withdrawn
        self._wake.set()

    def _clear(self, reason: str) -> None:
        """Open a new epoch: nothing of what was is present any more."""
        self._pending.clear()
        self._reopen = reason
        self._from_memory = False
        self._newest = Progress(BEFORE_FIRST, self._newest.time_s)
        self._wake.set()

    def _root(self) -> str:
        return f"{self.target.fence}.{self._roots}"

    def holders(self) -> dict[HolderId, str]:
        """Give the ids under which blocks are written, and what their texts begin with."""
        if self._at is None or self._is_reopening():
            return {}
        text = f"endpoint={self.target.name} epoch={self._at.epoch}"
        return {slot.holder: text for slot in self._slots.values()}

    def check(self) -> None:
        """Look whether Redis still stands where it was left."""
        self._doubtful = True
        self._wake.set()

    async def run(self) -> None:
        """Write, for ever. Faults of Redis are waited out, not raised."""
        delay = RETRY_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.is_fenced:
                continue
            try:
                await self._settle()
                await self._flush()
                delay, self.failing = RETRY_S, None
            except IndexUnavailable as error:
                self.failing = error.reason
                self._metrics.store_errors.labels(error.reason).inc()
                self._doubtful = True
                self._refused = self._refused or isinstance(error, WrongEpoch)
                if isinstance(error, Fenced):
                    # Another's, or Redis lost who owns it: whoever claims endpoints finds out.
                    self.is_fenced = True
                    continue
                self._wake.set()
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX_S)

    async def _flush(self) -> None:
        if self._reopen is not None:
            await self._open(self._reopen)
        at = self._at
        if at is None or self._is_reopening() or self.is_withdrawn:
            return
        pending, self._pending = self._pending, {}
        newest = self._newest
        parcel = self._memory.parcel(newest.seq, self._behind_by)
        self._behind_by = None
        try:
            if await self._write(pending, at, newest, parcel):
                self._memory.written(parcel)
        except IndexUnavailable as error:
            if not self._is_reopening():
                self._pending = overlay(pending, self._pending)
                if error.reason == FULL:
                    await self._make_room(at.seq)
            raise
        if newest.seq != BEFORE_FIRST:
            self.lag_s = max(0.0, time.time() - newest.time_s)
            self._metrics.lag.labels(self.target.name).set(self.lag_s)

    async def _write(
        self, pending: Pending, at: Position, newest: Progress, parcel: Parcel = NO_PARCEL
    ) -> bool:
        """Write entries in parts; only the last one moves the sequence, and takes memory along.

        Returns:
            False when it was broken off for a new epoch.
        """
        parts: list[list[Change]] = [[]] if newest.seq != at.seq or parcel.fields else []
        if size(pending):
            # A group without a holder would be one that readers do not ask for.
            for pool in (*self.cache.groups.device_pools, *pending):
                await self._slot(pool)
            parts = parts_of(self._changes(pending))
        for number, changes in enumerate(parts, 1):
            is_last = number == len(parts)
            to = newest if is_last else Progress(at.seq, newest.time_s)
            at = await self._apply(at, to, changes, parcel if is_last else NO_PARCEL)
            if self._is_reopening():
                return False
        return True

    async def _make_room(self, seq: int) -> None:
        """Write what has left alone: a full Redis takes it, and stores must wait."""
        gone = removals(self._pending)
        if not gone or self._at is None:
            return
        await self._write(gone, self._at, Progress(seq, self._newest.time_s))
        for pool, blocks in gone.items():
            waiting = self._pending.get(pool, {})
            for block in blocks:
                if waiting.get(block) is False:
                    del waiting[block]

    async def _apply(
        self, at: Position, to: Progress, changes: list[Change], parcel: Parcel
    ) -> Position:
        after = self._attempted = at.after(to)
        changed = await self._store.apply(self.target, at, to, changes, parcel.fields)
        self._at = after
        self._metrics.entries_written.inc(changed)
        return after

    async def _open(self, reason: str) -> None:
        """Open the epoch that was asked for; another one may be asked for meanwhile."""
        target, roots = self.target, self._roots
        forgets = roots != self._opened_roots
        opening = Opening(reason, time.time(), forgets=forgets, fields=self._fields())
        epoch = await self._store.open_epoch(target, self._believed, opening)
        self._opened_roots = roots
        self._believed = epoch
        self._at = Position(epoch, BEFORE_FIRST)
        self._slots.clear()
        self._metrics.epochs.labels(target.name, reason).inc()
        _LOG.info("epoch.opened", endpoint=target.name, epoch=epoch, reason=reason)
        if self._reopen != reason:
            return
        self._reopen = None
        if self._from_memory:
            self._from_memory = False
            for pool, block in self.cache.entries():
                self._pending.setdefault(pool, {})[block] = True

    def _is_finished(self) -> bool:
        if self._at is None:
            return self._reopen is None
        is_written = self.is_withdrawn or not self._memory.is_behind(self._newest.seq)
        return self.is_current and is_written

    def _is_reopening(self) -> bool:
        """Tell whether an epoch was asked for, perhaps while a write was under way."""
        return self._reopen is not None

    def _changes(self, pending: Pending) -> Iterator[Change]:
        """Sort entries by holder, stores before removals."""
        for present in (True, False):
            for pool, entries in pending.items():
                slot = self._slots[pool]
                blocks = [block for block, state in entries.items() if state is present]
                yield Change(slot.holder, blocks, present, slot.windowed)

    async def _slot(self, pool: Pool) -> _Slot:
        slot = self._slots.get(pool)
        if slot is None:
            slot = self._slots[pool] = await self._open_pool(pool)
        return slot

    async def _open_pool(self, pool: Pool) -> _Slot:
        if self._at is None:
            raise WrongEpoch
        group = self.cache.groups.of(pool)
        windowed = group.kind in WINDOWED_KINDS
        size = self.cache.block_size if windowed else 0
        holder = Holder(self.target.name, self._at.epoch, pool, group.kind, group.window, size)
        number = await self._store.open_pool(self.target, holder, self._fields())
        return _Slot(number, windowed)

    def _fields(self) -> dict[str, RedisArg]:
        """Say of the endpoint's state what its events have told."""
        groups = self.cache.groups
        return {
            "block_size": self.cache.block_size,
            "groups": groups.to_text(),
            "unmatched": groups.fault or "",
        }

    async def _settle(self) -> None:
        """Find out where the index stands, after a write of unknown outcome or on suspicion."""
        if not self._doubtful:
            return
        found = await self._store.position(self.target)
        refused, self._refused, self._doubtful = self._refused, False, False
        if found is not None:
            self._believed = found.epoch
        if self._is_reopening() or self._at is None:
            return
        if found and not refused and found in (self._at, self._attempted):
            self._at = found
            return
        self._memory.lost()
        self.rewrite("index_lost" if found is None else "index_changed")

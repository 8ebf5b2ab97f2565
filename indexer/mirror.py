"""What Redis must still learn of one endpoint.

Per entry only the newest state is kept, so what waits is bounded by the cache and not by the rate
of events, and a burst becomes few script calls. The counts in memory are the truth and Redis is
their mirror: when a write is refused, lost or overdue, a new epoch is opened and everything is
written from memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import IndexUnavailable, WrongEpoch
from kvatlas.common.ids import Epoch, HolderId, Pool
from kvatlas.common.keyspace import Holder
from kvatlas.common.kv_groups import WINDOWED_KINDS
from kvatlas.common.log import logger
from kvatlas.common.redis_client import RedisArg
from kvatlas.indexer.apply import Delta, EndpointCache, Entry
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.store import BEFORE_FIRST, Change, IndexStore, Position, Progress, Target

_LOG = logger("mirror")

RETRY_S = 0.1
RETRY_MAX_S = 2.0
FULL = "oom"
"""Redis is at its maxmemory and drops nothing."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the blocks of one pool go: under which holder, and into which buckets."""

    holder: HolderId
    windowed: bool


class Mirror:
    """Keep Redis equal to one endpoint's cache.

    `forget`, `update` and `rewrite` note what happened and return at once; `run` writes.
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
        self._pending: dict[Entry, bool] = {}
        self._reopen: str | None = None
        self._from_memory = False
        self._newest = Progress(BEFORE_FIRST, 0.0)
        self._attempted = BEFORE_FIRST
        self._at: Position | None = None
        self._believed: Epoch | None = None
        self._slots: dict[Pool, _Slot] = {}
        self._wake = asyncio.Event()
        self._doubtful = False
        self._refused = False
        self._conflicts = 0
        self._conflict_at = 0.0
        self.is_withdrawn = False
        """Whether Redis is to hold nothing of the endpoint for now, whatever its cache holds."""
        self.failing: str | None = None
        """Why the last write failed, if it did."""

    @property
    def epoch(self) -> Epoch | None:
        """Give the epoch that readers see; None while another one is about to be opened."""
        return None if self._at is None or self._is_reopening() else self._at.epoch

    @property
    def is_current(self) -> bool:
        """Tell whether Redis has been told everything."""
        at = self._at
        return self._reopen is None and at is not None and at.seq == self._newest.seq

    def forget(self, reason: str) -> None:
        """Open a new epoch: nothing of what was is present any more."""
        self.is_withdrawn = False
        self._pending.clear()
        self._reopen = reason
        self._from_memory = False
        self._newest = Progress(BEFORE_FIRST, self._newest.time_s)
        self._wake.set()

    def update(self, seq: int, time_s: float, delta: Delta) -> None:
        """Note what a batch changed."""
        if delta.cleared:
            self.forget("cleared")
        self._newest = Progress(seq, time_s)
        if delta.regrouped:
            self.rewrite("regrouped")
        elif not self._from_memory and not self.is_withdrawn:
            self._pending.update(delta.present)
        if len(self._pending) > limits.PENDING_OPS_MAX:
            self.rewrite("overflow")
        self._wake.set()

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
            try:
                await self._settle()
                await self._flush()
                delay, self.failing = RETRY_S, None
            except IndexUnavailable as error:
                self.failing = error.reason
                self._metrics.store_errors.labels(error.reason).inc()
                self._doubtful = True
                self._refused = self._refused or isinstance(error, WrongEpoch)
                self._wake.set()
                if error.reason == FULL:
                    await self._remove()
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX_S)

    async def _flush(self) -> None:
        if self._reopen is not None:
            await self._open(self._reopen)
        at = self._at
        if at is None or self._is_reopening():
            return
        pending, self._pending = self._pending, {}
        newest = self._newest
        try:
            await self._write(pending, at, newest)
        except IndexUnavailable:
            if not self._is_reopening():
                self._pending = {**pending, **self._pending}
            raise
        if newest.seq != BEFORE_FIRST:
            lag_s = max(0.0, time.time() - newest.time_s)
            self._metrics.lag.labels(self.target.name).set(lag_s)

    async def _remove(self) -> None:
        """Take out what is gone, of all that waits: what is to be set has no room in Redis.

        The sequence stays; what was taken out is so again when all can be written.
        """
        at = self._at
        if at is None or self._is_reopening():
            return
        gone = {e: p for e, p in self._pending.items() if not p and e[0] in self._slots}
        try:
            for part in _parts(gone.items()):
                changes = [await self._change(entry, present) for entry, present in part]
                await self._store.apply(
                    self.target, at, Progress(at.seq, self._newest.time_s), changes
                )
                for entry, _ in part:
                    if self._pending.get(entry) is False:
                        del self._pending[entry]
        except IndexUnavailable as error:
            self._metrics.store_errors.labels(error.reason).inc()

    async def _write(self, pending: dict[Entry, bool], at: Position, newest: Progress) -> None:
        """Write entries in parts; only the last one moves the sequence."""
        if pending:
            # A group without a holder would be one that readers do not ask for.
            for pool in self.cache.groups.device_pools:
                await self._slot(pool)
        left = len(pending)
        # What needs memory first: see common/lua/apply.lua.
        for part in _parts(sorted(pending.items(), key=itemgetter(1), reverse=True)):
            changes = [await self._change(entry, present) for entry, present in part]
            left -= len(part)
            to = newest if left == 0 else Progress(at.seq, newest.time_s)
            await self._apply(at, to, changes)
            if self._is_reopening():
                return
        if not pending and newest.seq != at.seq:
            await self._apply(at, newest, [])

    async def _apply(self, at: Position, to: Progress, changes: list[Change]) -> None:
        self._attempted = to.seq
        changed = await self._store.apply(self.target, at, to, changes)
        self._at = Position(at.epoch, to.seq)
        self._metrics.entries_written.inc(changed)

    async def _open(self, reason: str) -> None:
        """Open the epoch that was asked for; another one may be asked for meanwhile."""
        target = self.target
        epoch = await self._store.open_epoch(
            target, self._believed, reason, time.time(), self._fields()
        )
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
            self._pending = dict.fromkeys(self.cache.entries(), True)

    def _is_reopening(self) -> bool:
        """Tell whether an epoch was asked for, perhaps while a write was under way."""
        return self._reopen is not None

    async def _change(self, entry: Entry, present: bool) -> Change:  # noqa: FBT001 - from a dict
        pool, block = entry
        slot = self._slots.get(pool) or await self._slot(pool)
        return Change(block, slot.holder, present, slot.windowed)

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
        number = await self._store.open_pool(self.target.shard, holder, self._fields())
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
        other = found is not None and self._believed is not None and found.epoch != self._believed
        if found is not None:
            self._believed = found.epoch
        if refused and other:
            await self._yield_to_another()
        if self._is_reopening() or self._at is None:
            return
        if found is None:
            self.rewrite("index_lost")
        elif refused or other or found.seq not in (self._at.seq, self._attempted):
            self.rewrite("index_changed")
        else:
            self._at = found

    async def _yield_to_another(self) -> None:
        """Wait, longer each time, when somebody else writes this endpoint; then take it back."""
        now = monotonic()
        if now - self._conflict_at > 2 * limits.DOUBT_BACKOFF_MAX_S:
            self._conflicts = 0
        self._conflict_at = now
        self._conflicts = min(self._conflicts + 1, 16)
        delay = limits.DOUBT_BACKOFF_S * 2 ** (self._conflicts - 1)
        _LOG.warning("endpoint.contended", endpoint=self.target.name, wait_s=delay)
        await asyncio.sleep(min(delay, limits.DOUBT_BACKOFF_MAX_S))


def _parts(pending: Iterable[tuple[Entry, bool]]) -> Iterator[list[tuple[Entry, bool]]]:
    """Cut entries into parts that one script call takes."""
    items = iter(pending)
    while part := list(islice(items, limits.OPS_PER_SCRIPT_MAX)):
        yield part

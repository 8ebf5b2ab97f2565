"""What an engine's cache holds, counted from its events. Pure.

An engine announces every physical copy of a block and every removal of a copy, so a block is
present while stored minus removed is above zero. Events name blocks by the engine's hashes; which
of our block hashes that is, is learned from events that carry token ids, and is kept over doubts
and clears, because later children and offload tiers name blocks by the engine's hash alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EngineHash, ModelName, Pool
from kvatlas.indexer.events import Batch, BlockRemoved, BlockStored, Event
from kvatlas.indexer.groups import Groups

Entry = tuple[Pool, BlockHash]


@dataclass(slots=True)
class Delta:
    """What a batch changed.

    Attributes:
        cleared: everything that was present before the batch is gone; `present` comes after.
        regrouped: groups turned out to be others than was believed; what `entries` gives is to be
            written anew.
        present: per pool, blocks that changed, and whether they are present after the batch.
        orphans: stored blocks that could not be placed, their parent being unknown.
        unknown_removed: removals of blocks that were not present.
        over_limit: stored blocks beyond PRESENT_HASHES_MAX, which were left out.
    """

    cleared: bool = False
    regrouped: bool = False
    present: dict[Pool, dict[BlockHash, bool]] = field(default_factory=dict)
    orphans: int = 0
    unknown_removed: int = 0
    over_limit: int = 0


class EndpointCache:
    """The blocks that one endpoint holds, by its own word.

    Args:
        model: the model whose index the endpoint belongs to.
    """

    def __init__(self, model: ModelName) -> None:
        self._model = model
        self._counts: dict[Pool, dict[EngineHash, int]] = {}
        self._known: dict[EngineHash, BlockHash] = {}
        self._absent: OrderedDict[EngineHash, None] = OrderedDict()
        self._copies: dict[EngineHash, int] = {}
        """Pools that hold an engine hash, by hash; those with none are in `_absent`."""
        self._most_held = 0
        self.groups = Groups()
        """KV-cache groups, as far as events have told; kept over doubts and clears."""
        self.block_size = 0
        """Tokens per block, as of the newest event that tells; 0 before."""

    def apply(self, batch: Batch, *, counts_copies: bool = True) -> Delta:
        """Take over a batch.

        Args:
            batch: the batch.
            counts_copies: whether the store of a present block is a further copy of it; else it
                may as well be an announced hit, and leaves the count as it is.

        Events with token ids are read first to learn their hashes: in a hybrid model's batch the
        groups with windows name blocks that only the later full-attention event explains.
        """
        delta = Delta()
        for event in batch.events:
            if isinstance(event, BlockStored) and self.groups.learn(event):
                delta.regrouped = True
        for event in batch.events:
            if isinstance(event, BlockStored):
                self._learn(event, delta)
        for event in batch.events:
            # Nothing that was announced before a clear is there to be counted twice.
            self._count(event, delta, counts_copies=counts_copies or delta.cleared)
        self._trim()
        if not self.groups.are_matchable:
            delta.present.clear()
        return delta

    def forget(self, *, engine_gone: bool = False) -> None:
        """Begin a new epoch: nothing is present, what is known of hashes stays.

        Args:
            engine_gone: another process answers, whose groups may be others.
        """
        self._clear()
        if engine_gone:
            self.groups = Groups()
        else:
            self.groups.loosen()

    def entries(self) -> Iterator[Entry]:
        """Go through all that is present, placed, and of use for a match."""
        if not self.groups.are_matchable:
            return
        for pool, counts in self._counts.items():
            for engine_hash in counts:
                block = self._known.get(engine_hash)
                if block is not None:
                    yield pool, block

    def counts(self) -> Mapping[Pool, Mapping[EngineHash, int]]:
        """Give the copies present, per pool and engine hash; all are above zero."""
        return self._counts

    def _clear(self) -> None:
        for engine_hash in self._copies:
            self._absent[engine_hash] = None
        self._copies.clear()
        self._counts.clear()
        self._trim()

    def _learn(self, event: BlockStored, delta: Delta) -> None:
        """Learn which block hashes an event's engine hashes are.

        A group with blocks of another size than the endpoint's teaches nothing: engines call its
        blocks by the same hashes.
        """
        if event.block_size and self.groups.has_common_size(event):
            self.block_size = event.block_size
        elif event.block_size:
            return
        if event.is_dense:
            parent = self._parent(event)
            if parent is not None:
                blocks = chain(parent, event.token_ids, event.block_size, event.extras)
                known, copies, absent = self._known, self._copies, self._absent
                for engine_hash, block in zip(event.hashes, blocks, strict=True):
                    if engine_hash not in known and engine_hash not in copies:
                        known[engine_hash] = block
                        absent[engine_hash] = None
                    elif known.get(engine_hash) != block:
                        self._remember(engine_hash, block, delta)

    def _parent(self, event: BlockStored) -> BlockHash | None:
        if event.parent is None:
            return root_hash(self._model, event.block_size, event.lora)
        return self._known.get(event.parent)

    def _remember(self, engine_hash: EngineHash, block: BlockHash, delta: Delta) -> None:
        former = self._known.get(engine_hash)
        self._known[engine_hash] = block
        if engine_hash not in self._copies:
            self._absent[engine_hash] = None
            return
        # Stored when its parent was not known, or taken for another block; this event tells
        # which block it is.
        for pool, counts in self._counts.items():
            if engine_hash in counts:
                present = delta.present.setdefault(pool, {})
                if former is not None:
                    present[former] = False
                present[block] = True

    def _count(self, event: Event, delta: Delta, *, counts_copies: bool) -> None:
        if isinstance(event, BlockStored):
            self._store(event, delta, counts_copies=counts_copies)
        elif isinstance(event, BlockRemoved):
            self._remove(event, delta)
        else:
            self._clear()
            delta.cleared = True
            delta.present.clear()

    def _store(self, event: BlockStored, delta: Delta, *, counts_copies: bool) -> None:
        counts = self._counts.get(event.pool)
        if counts is None:
            if len(self._counts) >= limits.POOLS_PER_ENDPOINT_MAX:
                delta.over_limit += len(event.hashes)
                return
            counts = self._counts[event.pool] = {}
        known, present = self._known, delta.present.setdefault(event.pool, {})
        copies, absent = self._copies, self._absent
        for engine_hash in event.hashes:
            count = counts.get(engine_hash, 0)
            if count == 0:
                if len(copies) >= limits.PRESENT_HASHES_MAX:
                    delta.over_limit += 1
                    continue
                copies[engine_hash] = copies.get(engine_hash, 0) + 1
                absent.pop(engine_hash, None)
                block = known.get(engine_hash)
                if block is None:
                    delta.orphans += 1
                else:
                    present[block] = True
                counts[engine_hash] = 1
            elif counts_copies:
                counts[engine_hash] = count + 1
        self._most_held = max(self._most_held, len(copies))

    def _remove(self, event: BlockRemoved, delta: Delta) -> None:
        counts = self._counts.get(event.pool, {})
        present = delta.present.setdefault(event.pool, {})
        for engine_hash in event.hashes:
            count = counts.get(engine_hash, 0)
            if count == 0:
                delta.unknown_removed += 1
            elif count == 1:
                del counts[engine_hash]
                block = self._known.get(engine_hash)
                if block is not None:
                    present[block] = False
                self._left_pool(engine_hash)
            else:
                counts[engine_hash] = count - 1

    def _left_pool(self, engine_hash: EngineHash) -> None:
        pools = self._copies[engine_hash] - 1
        if pools:
            self._copies[engine_hash] = pools
        else:
            del self._copies[engine_hash]
            self._absent[engine_hash] = None

    def _trim(self) -> None:
        """Drop the hashes that have been absent the longest."""
        kept = max(limits.FORGOTTEN_HASHES_MIN, self._most_held)
        while len(self._absent) > kept:
            engine_hash, _ = self._absent.popitem(last=False)
            self._known.pop(engine_hash, None)

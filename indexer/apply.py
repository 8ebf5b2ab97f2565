"""What an engine's cache holds, counted from its events. Pure.

An engine announces every physical copy of a block and every removal of a copy, so a block is
present while stored minus removed is above zero. Events name blocks by the engine's hashes; which
of our block hashes that is, is learned from events that carry token ids, and is kept over doubts
and clears, because later children and offload tiers name blocks by the engine's hash alone.

What is remembered is parted into pages by engine hash, so that it can be written down bit by bit
(`memory`): a page is written as of some sequence, and `reapply` brings pages of different ages to
the same one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat

from msgspec import Struct, field

from kvatlas.common import limits
from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EngineHash, ModelName, Pool
from kvatlas.indexer.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event
from kvatlas.indexer.groups import GPU, Groups
from kvatlas.indexer.memory import PAGE_MASK, PAGES, Page

Present = dict[Pool, dict[BlockHash, bool]]


class Delta(Struct):
    """What a batch changed.

    Attributes:
        cleared: everything that was present before the batch is gone; `present` comes after.
        regrouped: groups turned out to be others than was believed; what `entries` gives is to be
            written anew.
        present: blocks that changed, by pool, and whether they are present at the batch's end.
        orphans: stored blocks that could not be placed, their parent being unknown.
        unknown_removed: removals of blocks that were not present.
        over_limit: stored blocks beyond PRESENT_HASHES_MAX, which were left out.
        overclaimed: stored blocks beyond what the engine's GPU can hold, which were left out.
    """

    cleared: bool = False
    regrouped: bool = False
    present: Present = field(default_factory=dict)
    orphans: int = 0
    unknown_removed: int = 0
    over_limit: int = 0
    overclaimed: int = 0

    def of(self, pool: Pool) -> dict[BlockHash, bool]:
        """Give what changed in a pool, to be added to."""
        changed = self.present.get(pool)
        if changed is None:
            changed = self.present[pool] = {}
        return changed


class EndpointCache:
    """The blocks that one endpoint holds, by its own word.

    Args:
        model: the model whose index the endpoint belongs to.
    """

    def __init__(self, model: ModelName) -> None:
        self._model = model
        self._counts: dict[Pool, dict[EngineHash, int]] = {}
        self._held = 0
        """Engine hashes present, summed over pools."""
        self._known: list[dict[EngineHash, BlockHash]] = [{} for _ in range(PAGES)]
        self._unplaced: set[EngineHash] = set()
        """Hashes that are present and not known."""
        self._absent: OrderedDict[EngineHash, None] = OrderedDict()
        """Hashes that are known and not present, the longest absent first."""
        self._most_held = 0
        self.groups = Groups()
        """KV-cache groups, as far as events have told; kept over doubts and clears."""
        self.block_size = 0
        """Tokens per block, as of the newest event that tells; 0 before."""
        self.gpu_max: int | None = None
        """Engine hashes that it may hold on the GPU, all groups together; None for no such bound:
        it is known only later, and must not part what is recalled from what the index has."""

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
        self._read(batch, delta)
        for event in batch.events:
            # Nothing that was announced before a clear is there to be counted twice.
            self._count(event, delta, counts_copies=counts_copies or delta.cleared)
        self._trim()
        is_of_use = self.groups.are_matchable
        delta.present = {pool: each for pool, each in delta.present.items() if each and is_of_use}
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

    @property
    def held(self) -> int:
        """Give the number of engine hashes present, summed over pools."""
        return self._held

    @property
    def held_on_gpu(self) -> int:
        """Give how many of them are on the engine's own GPU: there one block has one hash."""
        return sum(len(counts) for pool, counts in self._counts.items() if _is_own_gpu(pool))

    def entries(self) -> Iterator[tuple[Pool, BlockHash]]:
        """Go through all that is present, placed, and of use for a match."""
        if not self.groups.are_matchable:
            return
        for pool, counts in self._counts.items():
            for engine_hash in counts:
                block = self._known[engine_hash & PAGE_MASK].get(engine_hash)
                if block is not None:
                    yield pool, block

    def counts(self) -> Mapping[Pool, Mapping[EngineHash, int]]:
        """Give the copies present, per pool and engine hash; all are above zero."""
        return self._counts

    # --- pages --------------------------------------------------------------------------------

    def page(self, number: int) -> Page:
        """Give what is remembered of the engine hashes on a page.

        Cost: 0.1 us per hash.
        """
        known = self._known[number]
        hashes = list(known)
        if self._unplaced:
            hashes += [each for each in self._unplaced if each & PAGE_MASK == number]
        counts = {
            pool: list(map(counted.get, hashes, repeat(0)))
            for pool, counted in self._counts.items()
        }
        return Page(hashes, list(known.values()), counts)

    def restore(self, page: Page, *, is_present: bool = True) -> None:
        """Take over a page that was written before, into a cache that knows nothing of it.

        Args:
            page: as `page` gave it.
            is_present: what it says is present is; else only what hashes mean is of use.
        """
        placed = dict(zip(page.hashes, page.blocks, strict=False))
        for engine_hash, block in placed.items():
            self._known[engine_hash & PAGE_MASK][engine_hash] = block
        for pool, copies in page.copies.items() if is_present else ():
            counts = self._counts.setdefault(pool, {})
            here = {each: n for each, n in zip(page.hashes, copies, strict=True) if n}
            counts.update(here)
            self._held += len(here)
            self._unplaced.update(here.keys() - placed.keys())
        self._absent.update((each, None) for each in placed if not self._is_held(each))
        self._most_held = max(self._most_held, self._held)

    def reapply(
        self, batch: Batch, seq: int, stamps: Sequence[int], *, counts_copies: bool
    ) -> None:
        """Take a batch over into the pages that are older than it.

        Args:
            batch: the batch.
            seq: its sequence.
            stamps: the sequence that each page stands for.
            counts_copies: as for `apply`.
        """
        self._read(batch, Delta())
        delta = Delta()
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self._clear(lambda each: stamps[each & PAGE_MASK] < seq)
                delta.cleared = True
                continue
            mine = [each for each in event.hashes if stamps[each & PAGE_MASK] < seq]
            if len(mine) < len(event.hashes):
                self._note_absent(self._not_held(set(event.hashes) - set(mine)))
            if isinstance(event, BlockStored):
                counts = counts_copies or delta.cleared
                self._store(event.pool, mine, delta, counts_copies=counts)
            else:
                self._remove(event.pool, mine, delta)
        self._trim()

    # --- learning -----------------------------------------------------------------------------

    def _read(self, batch: Batch, delta: Delta) -> None:
        """Learn what a batch says of groups and hashes."""
        stores = [event for event in batch.events if isinstance(event, BlockStored)]
        for event in stores:
            if self.groups.learn(event):
                delta.regrouped = True
        for event in stores:
            self._learn(event, delta)

    def _learn(self, event: BlockStored, delta: Delta) -> None:
        """Learn which block hashes an event's engine hashes are.

        A group with blocks of another size than the endpoint's teaches nothing: engines call its
        blocks by the same hashes.
        """
        if event.block_size and self.groups.has_common_size(event):
            self.block_size = event.block_size
        elif event.block_size:
            return
        if not event.is_dense:
            return
        parent = self._parent(event)
        if parent is None:
            return
        blocks = chain(parent, event.token_ids, event.block_size, event.extras)
        known, unplaced = self._known, self._unplaced
        for engine_hash, block in zip(event.hashes, blocks, strict=True):
            page = known[engine_hash & PAGE_MASK]
            if page.setdefault(engine_hash, block) != block or engine_hash in unplaced:
                self._place(engine_hash, block, delta)

    def _parent(self, event: BlockStored) -> BlockHash | None:
        if event.parent is None:
            return root_hash(self._model, event.block_size, event.lora)
        return self._known[event.parent & PAGE_MASK].get(event.parent)

    def _place(self, engine_hash: EngineHash, block: BlockHash, delta: Delta) -> None:
        """Note what block a hash is that was taken for another one, or whose parent was unknown."""
        page = self._known[engine_hash & PAGE_MASK]
        former = page[engine_hash]
        page[engine_hash] = block
        self._unplaced.discard(engine_hash)
        for pool, counts in self._counts.items():
            if engine_hash in counts:
                if former != block:
                    delta.of(pool)[former] = False
                delta.of(pool)[block] = True

    # --- counting -----------------------------------------------------------------------------

    def _count(self, event: Event, delta: Delta, *, counts_copies: bool) -> None:
        if isinstance(event, BlockStored):
            self._store(event.pool, event.hashes, delta, counts_copies=counts_copies)
        elif isinstance(event, BlockRemoved):
            self._remove(event.pool, event.hashes, delta)
        else:
            self._clear()
            delta.cleared = True
            delta.present.clear()

    def _store(
        self, pool: Pool, hashes: Sequence[EngineHash], delta: Delta, *, counts_copies: bool
    ) -> None:
        counts = self._counts.get(pool)
        if counts is None:
            if len(self._counts) >= limits.POOLS_PER_ENDPOINT_MAX:
                delta.over_limit += len(hashes)
                self._note_absent(self._not_held(hashes))
                return
            counts = self._counts[pool] = {}
        known, absent, changed = self._known, self._absent, delta.of(pool)
        before, left_out = len(counts), 0
        room = limits.PRESENT_HASHES_MAX - self._held + before
        gpu_room = self._gpu_room(pool, len(hashes), room)
        most = min(room, gpu_room)
        for engine_hash in hashes:
            count = counts.get(engine_hash)
            if count is not None:
                if counts_copies:
                    counts[engine_hash] = count + 1
            elif len(counts) >= most:
                left_out += 1
                self._note_absent(self._not_held((engine_hash,)))
            else:
                counts[engine_hash] = 1
                if absent:
                    absent.pop(engine_hash, None)
                block = known[engine_hash & PAGE_MASK].get(engine_hash)
                if block is None:
                    self._unplaced.add(engine_hash)
                    delta.orphans += 1
                else:
                    changed[block] = True
        self._held += len(counts) - before
        if gpu_room < room:
            delta.overclaimed += left_out
        else:
            delta.over_limit += left_out

    def _gpu_room(self, pool: Pool, stored: int, room: int) -> int:
        """Give how many hashes a pool may come to hold by the bound of the GPU, if it matters."""
        most = self.gpu_max
        # With all pools below the bound the GPU's are, too: that need not be counted.
        if most is None or self._held + stored <= most or not _is_own_gpu(pool):
            return room
        return most - self.held_on_gpu + len(self._counts[pool])

    def _remove(self, pool: Pool, hashes: Sequence[EngineHash], delta: Delta) -> None:
        counts = self._counts.get(pool, {})
        changed, gone = delta.of(pool), []
        for engine_hash in hashes:
            count = counts.get(engine_hash, 0)
            if count == 0:
                delta.unknown_removed += 1
            elif count > 1:
                counts[engine_hash] = count - 1
            else:
                del counts[engine_hash]
                gone.append(engine_hash)
                block = self._known[engine_hash & PAGE_MASK].get(engine_hash)
                if block is not None:
                    changed[block] = False
        self._held -= len(gone)
        self._note_absent(gone if len(self._counts) == 1 else self._not_held(gone))

    def _clear(self, is_cleared: Callable[[EngineHash], bool] | None = None) -> None:
        """Take all hashes out of all pools, or those that are cleared."""
        self._most_held = max(self._most_held, self._held)
        gone: dict[EngineHash, None] = {}
        for pool, counts in self._counts.items():
            cleared = counts if is_cleared is None else filter(is_cleared, counts)
            here = dict.fromkeys(cleared)
            gone |= here
            self._counts[pool] = {each: n for each, n in counts.items() if each not in here}
            self._held -= len(here)
        self._counts = {pool: counts for pool, counts in self._counts.items() if counts}
        self._note_absent(self._not_held(gone))
        self._trim()

    def _note_absent(self, hashes: Iterable[EngineHash]) -> None:
        """Sort hashes that no pool holds: kept for a while, if they are known."""
        for engine_hash in hashes:
            if engine_hash in self._known[engine_hash & PAGE_MASK]:
                self._absent[engine_hash] = None
            else:
                self._unplaced.discard(engine_hash)

    def _not_held(self, hashes: Iterable[EngineHash]) -> list[EngineHash]:
        return [each for each in hashes if not self._is_held(each)]

    def _is_held(self, engine_hash: EngineHash) -> bool:
        return any(engine_hash in counts for counts in self._counts.values())

    def _trim(self) -> None:
        """Drop the hashes that have been absent the longest."""
        self._most_held = max(self._most_held, self._held)
        most = self._most_held * limits.REMEMBERED_TO_HELD
        kept = max(limits.FORGOTTEN_HASHES_MIN, int(most) - self._held)
        while len(self._absent) > kept:
            engine_hash, _ = self._absent.popitem(last=False)
            del self._known[engine_hash & PAGE_MASK][engine_hash]


def _is_own_gpu(pool: Pool) -> bool:
    return pool.medium == GPU and not pool.is_remote

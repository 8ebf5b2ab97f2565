"""The block cache of one engine, as vLLM keeps it. Pure.

A fixed number of blocks; block 0 is the null block and never used. A full block is registered
under its engine hash and stays registered after its last user has gone, until it is taken for
something else: free blocks wait in a queue, least recently freed first. There is no
de-duplication: one hash may sit in several blocks, each is announced when stored and when removed.
Source: vllm/v1/core/block_pool.py, kv_cache_manager.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvatlas.simulator.cache_events import CacheEvent, Cleared, Removed, Stored
from kvatlas.simulator.engine_hash import BlockKey, ChainHasher, wire_hash

NULL_BLOCK = 0


class BlockPool:
    """Blocks with reference counts, a free queue, and hashes of what is cached.

    Args:
        num_blocks: all blocks, the null block among them; at least 2.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        # A dict keeps order: of several copies the one registered first is found.
        self._copies: dict[BlockKey, dict[int, None]] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(NULL_BLOCK + 1, num_blocks))
        self._events: list[CacheEvent] = []

    @property
    def usable(self) -> int:
        """Count the blocks that requests can have."""
        return self.num_blocks - 1

    @property
    def free_count(self) -> int:
        """Count the blocks that nobody refers to, cached or not."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Count the blocks that somebody refers to."""
        return self.usable - len(self._free)

    def cached(self) -> dict[BlockKey, int]:
        """Count the copies of each cached block."""
        return {key: len(blocks) for key, blocks in self._copies.items()}

    def longest_match(self, keys: Iterable[BlockKey]) -> list[int]:
        """Find the blocks of the longest cached prefix of a chain, without taking them."""
        found = []
        for key in keys:
            blocks = self._copies.get(key)
            if blocks is None:
                break
            found.append(next(iter(blocks)))
        return found

    def fits(self, matched: Sequence[int], count: int) -> bool:
        """Tell whether `count` blocks are free besides those of a match."""
        idle_matched = sum(1 for block in matched if not self._references[block])
        return count + idle_matched <= len(self._free)

    def touch(self, blocks: Iterable[int]) -> None:
        """Refer to cached blocks; what was free is so no longer."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take blocks from the head of the free queue; cached ones are evicted for it.

        Raises:
            ValueError: fewer are free. The caller's, who asks `fits` first.
        """
        if count > len(self._free):
            raise ValueError("fewer blocks are free")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._evict(block)
            self._references[block] = 1
        return taken

    def register(self, blocks: Sequence[int], keys: Sequence[BlockKey], announce: Stored) -> None:
        """Make full blocks findable, and announce them, copies or not."""
        for block, key in zip(blocks, keys, strict=True):
            self._keys[block] = key
            self._copies.setdefault(key, {})[block] = None
        self._events.append(announce)

    def announce(self, stored: Stored) -> None:
        """Announce blocks that are cached already; on the wire it looks like another copy."""
        self._events.append(stored)

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each; the order given is the order of later eviction.

        A block that holds nothing findable goes to the head of the queue: it is used first.
        """
        uncached = []
        for block in blocks:
            self._references[block] -= 1
            if self._references[block]:
                continue
            if self._keys[block] is None:
                uncached.append(block)
            else:
                self._free[block] = None
        for block in reversed(uncached):
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Forget everything cached, unless a block is in use.

        Returns:
            Whether it was done. The announcement waits with the other events.
        """
        if self.used_count:
            return False
        self._keys = [None] * self.num_blocks
        self._copies.clear()
        self._events.append(Cleared())
        return True

    def take_events(self) -> list[CacheEvent]:
        """Hand over what happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _evict(self, block: int) -> None:
        key = self._keys[block]
        if key is None:
            return
        self._keys[block] = None
        copies = self._copies[key]
        del copies[block]
        if not copies:
            del self._copies[key]
        self._events.append(Removed(wire_hash(key)))


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, and how far its tokens are computed and cached.

    Attributes:
        tokens: prompt and generated tokens; the owner appends to it.
        salt: cache salt, part of the identity of the first block.
        lora: adapter, part of the identity of every block.
        announces_hits: announce a match at every try to schedule it, blocks found or not, as
            vLLM does for `kv_cache_report_mode: full`.
        computed: tokens whose keys and values are in the blocks.
    """

    pool: BlockPool
    block_size: int
    tokens: list[int]
    salt: str | None = None
    lora: str | None = None
    announces_hits: bool = False
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    _registered: int = 0
    _hasher: ChainHasher = field(init=False)

    def __post_init__(self) -> None:
        self._hasher = ChainHasher(self.block_size, self.salt, self.lora)

    def match(self) -> list[int]:
        """Find the cached prefix; at least one token is always left to compute."""
        full = (len(self.tokens) - 1) // self.block_size
        found = self.pool.longest_match(self._hasher.keys(self.tokens, full))
        if found and self.announces_hits:
            self.pool.announce(self._stored(0, len(found)))
        return found

    def grow(self, count: int, matched: Sequence[int] = ()) -> bool:
        """Get the blocks for the next tokens, and register those that get full.

        Blocks are registered when their tokens are scheduled, so that a request scheduled next,
        in the same step, already finds them.

        Args:
            count: tokens to compute beyond `computed` and the match.
            matched: result of `match` for a sequence that has no blocks, else nothing.

        Returns:
            False, and nothing is changed, when too few blocks are free.
        """
        computed = self.computed + len(matched) * self.block_size
        needed = -(-(computed + count) // self.block_size) - len(matched) - len(self.blocks)
        if not self.pool.fits(matched, max(needed, 0)):
            return False
        self.pool.touch(matched)
        self.blocks.extend(matched)
        self._registered += len(matched)
        self.computed = computed
        self.blocks.extend(self.pool.take(max(needed, 0)))
        self._register((computed + count) // self.block_size)
        return True

    def free(self) -> None:
        """Give all blocks back, tail first, so that heads of chains outlive their tails."""
        self.pool.release(reversed(self.blocks))
        self.blocks.clear()
        self.computed = self._registered = 0

    def _register(self, full: int) -> None:
        first = self._registered
        if full <= first:
            return
        keys = self._hasher.keys(self.tokens, full)
        self.pool.register(self.blocks[first:full], keys[first:], self._stored(first, full))
        self._registered = full

    def _stored(self, first: int, end: int) -> Stored:
        """Write the announcement of a range of full blocks."""
        keys, size = self._hasher.keys(self.tokens, end), self.block_size
        return Stored(
            hashes=tuple(map(wire_hash, keys[first:])),
            parent=wire_hash(keys[first - 1]) if first else None,
            token_ids=tuple(self.tokens[first * size : end * size]),
            block_size=size,
            extra_keys=tuple(map(self._extra_keys, range(first, end))),
            lora_name=self.lora,
        )

    def _extra_keys(self, index: int) -> tuple[str, ...] | None:
        """Give what else than tokens makes a block, untagged and in vLLM's order."""
        salt = self.salt if index == 0 else None
        return tuple(key for key in (self.lora, salt) if key) or None

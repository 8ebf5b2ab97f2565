"""The engine's block cache against a plain model that knows blocks by their whole text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvatlas.simulator.block_pool import BlockPool, BlockTable
from kvatlas.simulator.cache_events import Cleared, Removed, Stored

SIZE = 2
BLOCKS = 9

Identity = tuple[str | None, tuple[int, ...]]
"""Salt, and every token from the start of the prompt to the end of the block."""


@dataclass
class PlainCache:
    """What a block cache does, with lists and no hashes."""

    queue: list[int] = field(default_factory=lambda: list(range(1, BLOCKS)))
    users: Counter[int] = field(default_factory=Counter)
    content: dict[int, Identity] = field(default_factory=dict)
    evicted: list[Identity] = field(default_factory=list)

    def prefix(self, tokens: list[int], salt: str | None) -> list[int]:
        """Walk along the prompt, leaving out its last token, while some block has the text."""
        found: list[int] = []
        for end in range(SIZE, len(tokens), SIZE):
            wanted = (salt, tuple(tokens[:end]))
            block = next((b for b, text in self.content.items() if text == wanted), None)
            if block is None:
                break
            found.append(block)
        return found

    def use(self, blocks: list[int]) -> None:
        """Keep blocks for one more user."""
        self.queue = [block for block in self.queue if block not in blocks]
        self.users.update(blocks)

    def take(self) -> int:
        """Take the first in the queue, whatever it holds."""
        block = self.queue.pop(0)
        if block in self.content:
            self.evicted.append(self.content.pop(block))
        self.users[block] += 1
        return block

    def fill(self, block: int, text: Identity) -> None:
        """Write down what a block holds."""
        self.content[block] = text

    def give_back(self, blocks: list[int]) -> None:
        """Free the tail first; what holds no text is the very next to be used."""
        unused = []
        for block in blocks[::-1]:
            self.users[block] -= 1
            if self.users[block] == 0:
                unused.append(block)
        blank = [block for block in unused if block not in self.content]
        self.queue = blank + self.queue + [block for block in unused if block in self.content]


@dataclass(eq=False)
class Tenant:
    """A sequence in both caches."""

    table: BlockTable
    blocks: list[int] = field(default_factory=list)
    scheduled: int = 0


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, grow, generate, are preempted and go."""

    tenants: Bundle[Tenant] = Bundle("tenants")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.plain = PlainCache()
        self.alive: list[Tenant] = []
        self.identities: dict[int, Identity] = {}
        self.counts: Counter[int] = Counter()

    @rule(
        target=tenants,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=2 * BLOCKS),
        salt=st.sampled_from([None, "a"]),
    )
    def arrive(self, prompt: list[int], salt: str | None) -> Tenant:
        """A sequence has no blocks before it is scheduled."""
        tenant = Tenant(BlockTable(self.pool, SIZE, prompt, salt))
        self.alive.append(tenant)
        return tenant

    @rule(tenant=tenants, chunk=st.integers(1, 7))
    def schedule(self, tenant: Tenant, chunk: int) -> None:
        """A chunk is computed, behind a match when it is the first, if blocks are to be had."""
        table = tenant.table
        table.computed = tenant.scheduled
        matched = [] if tenant.scheduled else table.match()
        expected = [] if tenant.scheduled else self.plain.prefix(table.tokens, table.salt)
        assert matched == expected
        done = tenant.scheduled + len(matched) * SIZE
        count = min(chunk, len(table.tokens) - done)
        if count == 0:
            return
        grown = table.grow(count, matched)
        assert grown == self._grow_plainly(tenant, matched, done + count)
        if grown:
            tenant.scheduled = done + count
        self._check_events(tenant)

    def _grow_plainly(self, tenant: Tenant, matched: list[int], end: int) -> bool:
        missing = max(0, -(-end // SIZE) - len(tenant.blocks) - len(matched))
        if missing > len([block for block in self.plain.queue if block not in matched]):
            return False
        self.plain.use(matched)
        tenant.blocks += matched
        first_open = tenant.scheduled // SIZE if not matched else len(matched)
        tenant.blocks += [self.plain.take() for _ in range(missing)]
        for index in range(first_open, end // SIZE):
            text = tuple(tenant.table.tokens[: (index + 1) * SIZE])
            self.plain.fill(tenant.blocks[index], (tenant.table.salt, text))
        return True

    def _check_events(self, tenant: Tenant) -> None:
        """Removals come first, one copy each, in the order of the queue; then one store."""
        events = self.pool.take_events()
        while events and isinstance(events[0], Cleared):
            events.pop(0)
            self.counts.clear()
        removed = [event for event in events if isinstance(event, Removed)]
        stored = [event for event in events if isinstance(event, Stored)]
        assert events == [*removed, *stored]
        assert len(stored) <= 1
        assert [self.identities[event.hash] for event in removed] == self.plain.evicted
        self.plain.evicted.clear()
        self.counts.subtract(event.hash for event in removed)
        for event in stored:
            self._learn(event, tenant)

    def _learn(self, event: Stored, tenant: Tenant) -> None:
        before = self.identities[event.parent][1] if event.parent is not None else ()
        salt = tenant.table.salt
        for index, engine_hash in enumerate(event.hashes):
            text = (*before, *event.token_ids[: (index + 1) * SIZE])
            assert text == tuple(tenant.table.tokens[: len(text)])
            assert self.identities.setdefault(engine_hash, (salt, text)) == (salt, text)
            expected = (salt,) if salt and len(text) == SIZE else None
            assert event.extra_keys[index] == expected
        assert len(event.token_ids) == len(event.hashes) * SIZE
        self.counts.update(event.hashes)

    @rule(tenant=tenants, token=st.integers(0, 1))
    def generate(self, tenant: Tenant, token: int) -> None:
        """A token comes out once all before it are computed."""
        if tenant.scheduled == len(tenant.table.tokens) < 3 * BLOCKS:
            tenant.table.tokens.append(token)

    @rule(tenant=tenants)
    def preempt(self, tenant: Tenant) -> None:
        """A sequence that gives up its blocks starts over."""
        tenant.table.free()
        self.plain.give_back(tenant.blocks)
        tenant.blocks, tenant.scheduled = [], 0

    @rule(tenant=consumes(tenants))
    def leave(self, tenant: Tenant) -> None:
        """A sequence that ends leaves its full blocks to those that come."""
        self.preempt(tenant)
        self.alive.remove(tenant)

    @rule()
    def reset(self) -> None:
        """The cache is forgotten at once, unless blocks are in use; the event waits."""
        in_use = any(tenant.blocks for tenant in self.alive)
        assert self.pool.reset() is not in_use
        if not in_use:
            self.plain.content.clear()
            self.counts.clear()

    @invariant()
    def events_count_copies(self) -> None:
        """Stores minus removes give the copies of every block in the cache."""
        held = Counter(self.plain.content.values())
        counted = {self.identities[h]: n for h, n in self.counts.items() if n}
        assert counted == held
        assert sorted(self.pool.cached().values()) == sorted(held.values())

    @invariant()
    def blocks_are_conserved(self) -> None:
        """Every block but the null block is either in use or free, in the order expected."""
        in_use = {block for tenant in self.alive for block in tenant.table.blocks}
        assert 0 not in in_use
        assert self.pool.used_count == len(in_use) <= self.pool.usable
        assert self.pool.free_count + self.pool.used_count == BLOCKS - 1
        assert list(self.pool._free) == self.plain.queue
        for tenant in self.alive:
            assert tenant.table.blocks == tenant.blocks
            assert len(set(tenant.blocks)) == len(tenant.blocks)


TestBlockCache = CacheMachine.TestCase
TestBlockCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBlockCache.__doc__ = "Whatever comes and goes, the cache does what the plain model does."

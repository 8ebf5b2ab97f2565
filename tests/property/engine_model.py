"""A simulated engine without its scheduler: a real block pool, and what it announces.

It knows what it holds by our block hashes, and whether an indexer can know all of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, ModelName
from kvatlas.simulator.block_pool import BlockPool, BlockTable
from kvatlas.simulator.cache_events import CacheEvent, Removed, Stored
from kvatlas.simulator.engine_hash import wire_hash
from tests.fakes.publisher import CLEARED, FakePublisher, removed, stored

MODEL = ModelName("tiny")
SIZE = 4
BLOCKS = 14

Held = set[tuple[str, BlockHash]]
"""Medium and block."""


@dataclass(frozen=True)
class Identity:
    """What else than tokens a prompt is known by."""

    lora: str | None = None
    salt: str | None = None

    @property
    def engine_salt(self) -> str | None:
        """Give what parts this identity's engine hashes from others'."""
        return None if self == Identity() else f"{self.lora}\0{self.salt}"

    def extra_keys(self, first: bool, count: int) -> list[list[str] | None]:  # noqa: FBT001
        """Write the extra keys of consecutive blocks as vLLM does."""
        lora = [self.lora] if self.lora else []
        salt = [self.salt] if self.salt and first else []
        return [lora + salt or None, *[lora or None] * (count - 1)] if count else []

    def root(self) -> BlockHash:
        """Start a chain of ours."""
        return root_hash(MODEL, SIZE, self.lora)


@dataclass
class EngineModel:
    """The engine's side of the truth.

    Attributes:
        offloaded: engine hashes that the host's memory holds, too.
        partial: an indexer may legitimately not know all: what it missed cannot be replayed.
        truncated: the replay buffer does not reach back to the start, so that learning anew
            makes the knowledge partial.
    """

    publisher: FakePublisher
    pool: BlockPool = field(default_factory=lambda: BlockPool(BLOCKS))
    names: dict[int, BlockHash] = field(default_factory=dict)
    offloaded: set[int] = field(default_factory=set)
    partial: bool = False
    truncated: bool = False
    fresh: int = 1_000

    def serve(self, prompt: int, length: int, identity: Identity = Identity()) -> list[Any]:
        """Compute a prompt; prompts of one number share their beginning. Give its events."""
        source = random.Random(prompt)
        tokens = [source.randint(0, 999) for _ in range(length)]
        table = BlockTable(self.pool, SIZE, tokens, identity.engine_salt)
        matched = table.match()
        assert table.grow(length - len(matched) * SIZE, matched)
        table.free()
        return [self._announce(event, identity) for event in self.pool.take_events()]

    def serve_fresh(self) -> tuple[list[Any], Held]:
        """Compute a prompt that was never seen; give its events and its blocks."""
        self.fresh += 1
        events = self.serve(self.fresh, 2 * SIZE + 1)
        source = random.Random(self.fresh)
        tokens = [source.randint(0, 999) for _ in range(2 * SIZE)]
        return events, {("gpu", block) for block in chain(Identity().root(), tokens, SIZE)}

    def offload(self, count: int) -> list[Any]:
        """Copy some cached blocks to the host, announced by hash alone."""
        hashes = [wire_hash(key) for key in self.pool.cached()]
        fresh = [value for value in hashes if value not in self.offloaded][:count]
        self.offloaded |= set(fresh)
        nothing = {"block_size": 0, "medium": "CPU", "kv_cache_spec_kind": None}
        return [{**stored([value], []), **nothing} for value in fresh]

    def drop_offloaded(self, count: int) -> list[Any]:
        """Take some blocks out of the host's memory."""
        gone = sorted(self.offloaded)[:count]
        self.offloaded -= set(gone)
        return [{**removed(value), "medium": "CPU"} for value in gone]

    def restart(self) -> None:
        """Begin another life with nothing cached; all of it can be replayed."""
        self.pool = BlockPool(BLOCKS)
        self.offloaded.clear()
        self.truncated = False
        self.partial = self.publisher.silent

    def learned_anew(self) -> None:
        """Note that the indexer forgets and replays."""
        self.partial = self.partial or self.truncated

    def holds(self) -> Held:
        """List what is cached."""
        gpu = {("gpu", self.names[wire_hash(key)]) for key in self.pool.cached()}
        return gpu | {("cpu", self.names[value]) for value in self.offloaded}

    def _announce(self, event: CacheEvent, identity: Identity) -> Any:
        if isinstance(event, Stored):
            first = event.parent is None
            parent = identity.root() if event.parent is None else self.names[event.parent]
            salted = [(identity.salt,)] if first and identity.salt else []
            blocks = chain(parent, event.token_ids, SIZE, salted)
            self.names.update(zip(event.hashes, blocks, strict=True))
            return stored(
                list(event.hashes),
                list(event.token_ids),
                event.parent,
                SIZE,
                lora_name=identity.lora,
                extra_keys=identity.extra_keys(first, len(event.hashes)),
            )
        if isinstance(event, Removed):
            return removed(event.hash)
        # Every pool is cleared, and what follows is known from here on.
        self.offloaded.clear()
        if not self.publisher.silent:
            self.partial = self.truncated = False
        return CLEARED

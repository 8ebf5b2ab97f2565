"""Write an index as the indexer does, and look chains up in it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvatlas.common.ids import BlockHash, EndpointName, Fence, IndexerId, ModelName, Pool
from kvatlas.common.keyspace import Holder, Shard, shard_of
from kvatlas.indexer.leases import Leases
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.targets import NO_FENCE, Change, Opening, Position, Progress, Target
from kvatlas.router.lookup import BlockIndex

MODEL = ModelName("m")
SHARD = Shard(MODEL, 0)
GPU = Pool("gpu", 0)
LEASE_MS = 600_000


def chain_of(length: int, seed: int = 0) -> list[BlockHash]:
    """Make a chain of random hashes."""
    source = random.Random(seed)
    return [BlockHash(source.getrandbits(64)) for _ in range(length)]


class Writer:
    """Write blocks as the indexer does, one epoch per endpoint."""

    def __init__(self, url: str, shards: int = 1) -> None:
        self.store = IndexStore.connect(url)
        self._leases = Leases(self.store.client, IndexerId("writer"), LEASE_MS)
        self._fences: dict[EndpointName, Fence] = {}
        self.shards = shards
        self.positions: dict[EndpointName, Position] = {}

    def target(self, name: EndpointName) -> Target:
        """Find an endpoint's shard, and the claim under which it is written."""
        fence = self._fences.get(name, NO_FENCE)
        return Target(name, shard_of(MODEL, name, self.shards), fence)

    async def claim(self, name: EndpointName) -> Target:
        """Take an endpoint, as an indexer does before it writes."""
        fence = await self._leases.claim(self.target(name))
        assert fence
        self._fences[name] = fence
        return self.target(name)

    async def open(self, name: EndpointName) -> None:
        """Open an epoch."""
        await self.claim(name)
        epoch = await self.store.open_epoch(self.target(name), None, Opening("start", 1.0))
        self.positions[name] = Position(epoch, -1)

    async def set(
        self,
        name: EndpointName,
        blocks: list[BlockHash],
        *,
        present: bool = True,
        kind: str = "full_attention",
        pool: Pool = GPU,
    ) -> int:
        """Write blocks as present or absent."""
        if name not in self.positions:
            await self.open(name)
        at, target = self.positions[name], self.target(name)
        holder = Holder(name, at.epoch, pool, kind)
        number = await self.store.open_pool(target, holder, {"block_size": 16})
        change = Change(number, blocks, present, holder.is_windowed)
        changed = await self.store.apply(target, at, Progress(at.seq + 1, 1.0), [change])
        self.positions[name] = Position(at.epoch, at.seq + 1)
        return changed


async def matched(
    index: BlockIndex, shards: Sequence[Shard], chain: list[BlockHash]
) -> dict[EndpointName, int]:
    """Look a chain up and give the blocks alone."""
    return {name: match.blocks for name, match in (await index.match(shards, chain)).items()}


def named(number: int) -> EndpointName:
    """Name an endpoint."""
    return EndpointName(f"10.0.0.{number}:8000")

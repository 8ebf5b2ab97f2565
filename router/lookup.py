"""Who holds how much of a prompt: the only reader of the block index.

One script call per index shard, two for long chains (see thinning), returns the chain as runs of
equal holder lists (common/lua/lookup.lua); here the lists become sets of endpoints and the runs are
intersected. Ids of past epochs are not in the holders map and so mean nothing. Only for endpoints
of hybrid models another call reads what their windows hold (common/lua/windows.lua).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import pack

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.deadline import Deadline
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import BlockHash, EndpointName, Epoch, ModelName
from kvatlas.common.keyspace import SCHEMA_KEY, Shard
from kvatlas.common.kv_groups import DEFAULT_TIER_WEIGHTS, Tier
from kvatlas.common.records import record
from kvatlas.common.redis_client import RedisArg, Script, connect, guard
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.router.holders import Match, Runs, ShardView, Spans, intersect, weigh
from kvatlas.router.thinning import gaps_behind, joined, stride_of, widened
from kvatlas.router.windows import longest_hit


@dataclass(slots=True)
class _Place:
    """A shard, what is known of its holders, and its keys."""

    shard: Shard
    view: ShardView
    holders: str
    bucket_prefix: str


@record
class _Chain:
    """What is looked up, and what the first step asks for: each block of a stride."""

    hashes: Sequence[BlockHash]
    stride: int
    thinned: bytes


class BlockIndex:
    """The block index in Redis, for reading.

    Args:
        client: a connection; others may read with it, too.
        weights: what a block in each tier is worth, per model; the defaults for other models.
        limit_s: for Redis to answer a lookup; LOOKUP_S where it is not given.
    """

    def __init__(
        self,
        client: Redis,
        weights: Mapping[ModelName, Mapping[Tier, float]] | None = None,
        limit_s: float | None = None,
    ) -> None:
        self.client = client
        self._limit_s = limits.LOOKUP_S if limit_s is None else limit_s
        self._weights = weights or {}
        self._script = Script("lookup", reads_only=True)
        self._windows = Script("windows", reads_only=True)
        self._places: dict[Shard, _Place] = {}
        self.is_readable = True
        """Whether it is of the schema that is ours; `router/schema.py` looks."""
        self.undecided = 0
        """Matches of hybrid endpoints that were given up at WINDOW_BLOCKS_MAX, since the start."""

    @classmethod
    def connect(
        cls,
        redis: str | RedisSettings,
        weights: Mapping[ModelName, Mapping[Tier, float]] | None = None,
        limit_s: float | None = None,
    ) -> BlockIndex:
        """Make a reader; nothing is sent before the first lookup."""
        limit_s = limits.LOOKUP_S if limit_s is None else limit_s
        client = connect(
            redis,
            # Only a guard: `match` keeps the deadline, and knows a stall of our own loop.
            timeout_s=5 * limit_s,
            connections_max=None,
            reads_only=True,
        )
        return cls(client, weights, limit_s)

    async def warm(self) -> None:
        """Open a connection ahead of the first request.

        Raises:
            IndexUnavailable: Redis is not there.
        """
        with guard():
            await self.client.ping()

    async def schema(self) -> str | None:
        """Read which schema the index has; None where there is none yet.

        Raises:
            IndexUnavailable: Redis is not there.
        """
        with guard():
            found = await self.client.get(SCHEMA_KEY)
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    async def match(
        self, shards: Sequence[Shard], hashes: Sequence[BlockHash]
    ) -> dict[EndpointName, Match]:
        """Find how many leading blocks of a chain each endpoint holds.

        Args:
            shards: the model's index shards.
            hashes: the chain, from the first block on.

        Returns:
            One match per endpoint; who holds none is absent.

        Raises:
            IndexUnavailable: Redis did not answer in time, or refused.

        Cost: 0.1 to 0.2 ms for 64 to 6,400 blocks and 64 endpoints (make bench-index); hybrid
            models take another call, and 0.3 ms for each 100 blocks of windows that are read.
        """
        if not hashes:
            return {}
        if not self.is_readable:
            raise IndexUnavailable("schema")
        stride = stride_of(len(hashes))
        chain = _Chain(hashes, stride, _packed(hashes[::stride]))
        with guard(), Deadline(self._limit_s, limits.LOOKUP_GRACE_S):
            if len(shards) == 1:
                return await self._match_shard(shards[0], chain)
            asked = [asyncio.ensure_future(self._match_shard(shard, chain)) for shard in shards]
            try:
                found = await asyncio.gather(*asked)
            finally:
                for one in asked:
                    one.cancel()
        return {name: match for matches in found for name, match in matches.items()}

    def epoch_of(self, shard: Shard, name: EndpointName) -> Epoch | None:
        """Give the epoch of an endpoint that holds anything, as of the newest lookup."""
        place = self._places.get(shard)
        return place.view.epochs.get(name) if place else None

    async def _match_shard(self, shard: Shard, chain: _Chain) -> dict[EndpointName, Match]:
        place = self._places.get(shard)
        if place is None:
            view = ShardView(self._weights_of(shard))
            place = self._places[shard] = _Place(shard, view, shard.holders, shard.bucket_prefix)
        try:
            view, (runs,) = await self._runs(place, [chain.thinned])
            if chain.stride == 1:
                found = intersect(runs, view.epochs)
            else:
                runs, found = await self._match_thinned(place, view, runs, chain)
            if view.hybrids:
                found = await self._cut_hybrids(shard, view, runs, found, chain.hashes)
        except ValueError:
            raise IndexUnavailable("foreign_entry") from None
        return found

    async def _runs(
        self, place: _Place, chains: Sequence[bytes]
    ) -> tuple[ShardView, Sequence[Runs]]:
        """Ask for the runs of chains, and for what their holders mean."""
        view = place.view
        args: list[RedisArg] = [place.bucket_prefix, view.version, *chains]
        version, fields, *found = await self._script.run(self.client, (place.holders,), args)
        if version != view.version:
            # Lookups overlap: another one may have renewed the view, or be about to.
            view = place.view = ShardView(self._weights_of(place.shard), version, fields)
        read = view.full
        return view, [
            [(last, read(value)) for last, value in zip(flat[::2], flat[1::2], strict=True)]
            for flat in found
        ]

    async def _match_thinned(
        self, place: _Place, view: ShardView, runs: Runs, chain: _Chain
    ) -> tuple[Runs, dict[EndpointName, Match]]:
        """Find where exactly the runs of a thinned chain end."""
        runs = widened(runs, chain.stride)
        gaps = gaps_behind(runs, chain.stride, len(chain.hashes))
        asked = [_packed(chain.hashes[first:end]) for first, end in gaps if first < end]
        if not asked:
            return runs, intersect(runs, view.epochs)
        later, found = await self._runs(place, asked)
        if later is view:
            runs = joined(runs, gaps, iter(found))
            return runs, intersect(runs, view.epochs)
        # Ids have changed their meaning in between. What was found first falls short by less than
        # a stride, but for endpoints whose epoch is over.
        rough = intersect(runs, view.epochs)
        stands = view.epochs.items() & later.epochs.items()
        return runs, {
            name: match for name, match in rough.items() if (name, match.epochs[name]) in stands
        }

    def _weights_of(self, shard: Shard) -> Mapping[Tier, float]:
        return self._weights.get(shard.model, DEFAULT_TIER_WEIGHTS)

    async def _cut_hybrids(
        self,
        shard: Shard,
        view: ShardView,
        runs: Runs,
        found: dict[EndpointName, Match],
        hashes: Sequence[BlockHash],
    ) -> dict[EndpointName, Match]:
        """Cut the matches of hybrid endpoints down to what all of their groups can serve."""
        most = {
            name: found[name].blocks if hybrid.has_full else len(hashes)
            for name, hybrid in view.hybrids.items()
            if not hybrid.has_full or name in found
        }
        hits = await self._hits(shard, view, most, hashes)
        cut = {name: match for name, match in found.items() if name not in view.hybrids}
        for name, blocks in hits.items():
            if blocks:
                full = view.hybrids[name].has_full
                weighted = weigh(runs, name, blocks) if full else float(blocks)
                cut[name] = Match(blocks, weighted, view.epochs)
        return cut

    async def _hits(
        self,
        shard: Shard,
        view: ShardView,
        most: dict[EndpointName, int],
        hashes: Sequence[BlockHash],
    ) -> dict[EndpointName, int]:
        """Read windows backward from the longest match until every endpoint's hit is decided."""
        hits: dict[EndpointName, int] = {}
        undecided = dict(most)
        spans = Spans(view)
        low = top = max(most.values(), default=0)
        step = min(limits.WINDOW_BLOCKS_FIRST, max(map(view.window_blocks, most), default=0))
        while undecided and low and top - low < limits.WINDOW_BLOCKS_MAX:
            first = max(0, low - step, top - limits.WINDOW_BLOCKS_MAX)
            args = (shard.window_prefix, _packed(hashes[first:low]))
            flat = await self._windows.run(self.client, (shard.holders,), args)
            spans.prepend(first, flat)
            low, step = first, 4 * step
            for name, blocks in list(undecided.items()):
                hit = longest_hit(blocks, low, spans.of(name))
                if hit is not None:
                    hits[name] = hit
                    del undecided[name]
        self.undecided += len(undecided)
        return hits

    async def aclose(self) -> None:
        """Close the connections."""
        with guard():
            await self.client.aclose()


def _packed(hashes: Sequence[BlockHash]) -> bytes:
    """Write block hashes as 8 bytes each, big-endian."""
    return pack(f">{len(hashes)}Q", *hashes)

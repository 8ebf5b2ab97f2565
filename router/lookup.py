"""Who holds how much of a prompt: the only reader of the block index.

One script call per index shard returns the chain as runs of equal holder lists (see
common/lua/lookup.lua); here the lists become sets of endpoints and the runs are intersected.
Ids of past epochs are not in the holders map and so mean nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import BlockHash, EndpointName, Epoch, HolderId
from kvatlas.common.keyspace import HASH_BYTES, VERSION_FIELD, Holder, Shard, parse_holder_ids
from kvatlas.common.redis_client import Script, connect, guard
from kvatlas.common.setting_sections import RedisSettings

T = TypeVar("T")

MATCHED_KINDS = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
"""Kinds of KV-cache groups whose blocks make a prefix; windows of others do not."""

Runs = Sequence[tuple[int, frozenset[EndpointName]]]
"""(number of the last block, counted from 1, who holds the run's blocks), in order."""


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a chain one endpoint holds.

    Attributes:
        blocks: leading blocks that a request would hit there, wherever they live; at least 1.
        weighted_blocks: the same, each block counted by the weight of its best tier, in
            [0, blocks]; what scheduling goes by.
        epoch: the epoch that the match is from.
    """

    blocks: int
    weighted_blocks: float
    epoch: Epoch


@dataclass(slots=True)
class _ShardView:
    """What is known of a shard's holders between two lookups.

    Attributes:
        version: as Redis gave it; empty before the first lookup.
        holders: live holder ids whose blocks count for a match.
        epochs: current epoch of each endpoint that holds anything.
        parsed: holder lists seen under this version.
    """

    version: bytes = b""
    holders: Mapping[HolderId, EndpointName] = field(default_factory=dict)
    epochs: Mapping[EndpointName, Epoch] = field(default_factory=dict)
    parsed: dict[bytes, frozenset[EndpointName]] = field(default_factory=dict)

    def renew(self, version: bytes, fields: Sequence[bytes]) -> None:
        """Take over another version of the holders map."""
        self.version = version
        live = _live_holders(fields)
        self.holders = {number: holder.endpoint for number, holder in live.items()}
        self.epochs = {holder.endpoint: holder.epoch for holder in live.values()}
        self.parsed = {}

    def endpoints(self, value: bytes) -> frozenset[EndpointName]:
        """Read a list of holder ids as the endpoints that they stand for."""
        known = self.parsed.get(value)
        if known is None:
            if len(self.parsed) >= limits.HOLDER_VALUES_CACHED_MAX:
                self.parsed.clear()
            holders = self.holders
            ids = parse_holder_ids(value)
            known = self.parsed[value] = frozenset(holders[i] for i in ids if i in holders)
        return known


class BlockIndex:
    """The block index in Redis, for reading."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script = Script("lookup", reads_only=True)
        self._views: dict[Shard, _ShardView] = {}

    @classmethod
    def connect(cls, redis: str | RedisSettings) -> BlockIndex:
        """Make a reader; nothing is sent before the first lookup."""
        return cls(
            connect(
                redis,
                # Only a guard: `match` keeps the deadline, and knows a stall of our own loop.
                timeout_s=5 * limits.LOOKUP_S,
                connections_max=limits.REDIS_LOOKUP_CONNECTIONS_MAX,
                reads_only=True,
            )
        )

    async def warm(self) -> None:
        """Open a connection ahead of the first request.

        Raises:
            IndexUnavailable: Redis is not there.
        """
        with guard():
            await self._client.ping()

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
            IndexUnavailable: Redis did not answer within LOOKUP_S, or refused.

        Cost: 0.3 to 1.0 ms for 64 to 6,400 blocks and 64 endpoints (bench/index.py).
        """
        if not hashes:
            return {}
        packed = b"".join([block.to_bytes(HASH_BYTES, "big") for block in hashes])
        asked = [asyncio.ensure_future(self._match_shard(shard, packed)) for shard in shards]
        try:
            found = await _in_time(asyncio.gather(*asked))
        finally:
            for one in asked:
                one.cancel()
        return {name: match for matches in found for name, match in matches.items()}

    async def _match_shard(self, shard: Shard, packed: bytes) -> dict[EndpointName, Match]:
        view = self._views.setdefault(shard, _ShardView())
        known = view.version
        args = (shard.bucket_prefix, known, packed)
        version, fields, runs = await self._script.run(self._client, (shard.holders,), args)
        if version != known:
            # Lookups overlap: another one may have renewed the view, or be about to.
            view = _ShardView()
            view.renew(version, fields)
            self._views[shard] = view
        pairs = zip(runs[::2], runs[1::2], strict=True)
        try:
            found = intersect([(last, view.endpoints(value)) for last, value in pairs])
        except ValueError:
            raise IndexUnavailable("foreign_entry") from None
        return {
            name: Match(blocks, float(blocks), view.epochs[name]) for name, blocks in found.items()
        }

    async def aclose(self) -> None:
        """Close the connections."""
        with guard():
            await self._client.aclose()


async def _in_time(asked: asyncio.Future[T]) -> T:
    """Wait for an answer of Redis within LOOKUP_S.

    When the loop was stalled, the time is over and the answer lies unread: it gets a last look.
    """
    try:
        for seconds in (limits.LOOKUP_S - limits.LOOKUP_GRACE_S, limits.LOOKUP_GRACE_S):
            done, _ = await asyncio.wait({asked}, timeout=seconds)
            if done:
                return asked.result()
    finally:
        asked.cancel()
        asked.add_done_callback(_look_away)
    raise IndexUnavailable("timeout")


def _look_away(asked: asyncio.Future[T]) -> None:
    """Take note of how an answer ended that nobody waits for, so that asyncio does not log it."""
    if not asked.cancelled():
        asked.exception()


def intersect(runs: Runs) -> dict[EndpointName, int]:
    """Turn runs of holders into leading blocks per endpoint.

    An endpoint's match ends with the first run that it is not in.
    """
    matches: dict[EndpointName, int] = {}
    active: frozenset[EndpointName] | None = None
    for last, endpoints in runs:
        active = endpoints if active is None else active & endpoints
        if not active:
            break
        for name in active:
            matches[name] = last
    return matches


def _live_holders(fields: Sequence[Any]) -> dict[HolderId, Holder]:
    """Read the reply of HGETALL on the holders map; what is foreign in it is left out."""
    live: dict[HolderId, Holder] = {}
    for key, text in zip(fields[::2], fields[1::2], strict=True):
        if key == VERSION_FIELD.encode():
            continue
        try:
            holder = Holder.from_text(text.decode())
            number = HolderId(int(key))
        except ValueError:
            continue
        if holder.kind in MATCHED_KINDS:
            live[number] = holder
    return live

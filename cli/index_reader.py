"""Read the index for people: who is in it, and who holds what. Changes nothing.

Key names and fields are described in docs/REDIS.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import SharedSample
from kvatlas.common.ids import BlockHash, EndpointName, HolderId, ModelName
from kvatlas.common.keyspace import (
    MODELS_KEY,
    Holder,
    LoadKeys,
    Shard,
    parse_holder_ids,
    shards_of,
)
from kvatlas.common.kv_groups import Tier
from kvatlas.common.redis_client import connect, guard
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.router.holders import Match
from kvatlas.router.lookup import BlockIndex

POOL_PREFIX = "holder:"
COUNTS = ("gaps", "replays", "orphans", "unknown_removals")


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What the index says of one endpoint.

    Attributes:
        seq: newest sequence number that is in the index; -1 before the first of an epoch.
        blocks: present in all its pools.
        reason: why its epoch began.
        since_s: when, Unix seconds; 0 when not known.
        event_s: the engine's time stamp of the newest batch, Unix seconds; 0 before the first.
        pools: holder id per pool, such as "gpu/0".
        groups: KV-cache groups, such as "0=sliding_window/64 1=full_attention".
        unmatched: why nothing of the endpoint is indexed; empty when it is.
        phase: how the indexer follows it: "connecting", "replaying", "live", "waiting",
            "stale".
        followed_s: when the indexer said so, Unix seconds; 0 when it never did.
        owner: the indexer that follows it; empty when nobody does.
        lag_s: from the newest event's time stamp to its being in the index, when last told.
        counts: of "gaps", "replays", "orphans", "unknown_removals", since the indexer's start.
    """

    name: EndpointName
    shard: int
    epoch: int
    seq: int
    blocks: int
    block_size: int | None
    reason: str
    since_s: float
    event_s: float
    pools: Mapping[str, int]
    groups: str
    unmatched: str
    phase: str
    followed_s: float
    owner: str
    lag_s: float
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EndpointGauges:
    """What indexers tell of one endpoint's gauges.

    Attributes:
        age_s: since the engine was looked at.
        due_s: after which the next look was due.
        is_up: whether it answered.
    """

    name: EndpointName
    age_s: float
    due_s: float
    is_up: bool
    running: float
    waiting: float
    kv_usage: float
    blocks: int | None
    adapters: Sequence[str]

    @property
    def is_stale(self) -> bool:
        """Tell whether routers look at the engine themselves."""
        return not self.is_up or self.age_s > self.due_s + limits.GAUGES_STALE_S


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """What the index holds for one model, and what is told of its endpoints' gauges."""

    model: ModelName
    shards: int
    endpoints: Sequence[EndpointState]
    gauges: Sequence[EndpointGauges] = ()

    @property
    def block_sizes(self) -> list[int]:
        """Give the block sizes that engines have shown."""
        return sorted({one.block_size for one in self.endpoints if one.block_size})


class IndexReader:
    """Read the index for people.

    Every method raises IndexUnavailable when Redis does not answer.
    """

    def __init__(
        self,
        redis: str | RedisSettings,
        weights: Mapping[ModelName, Mapping[Tier, float]] | None = None,
    ) -> None:
        self._client: Redis = connect(
            redis, timeout_s=limits.REDIS_WRITE_S, connections_max=1, reads_only=True
        )
        # A replica's clock does not tell how old gauges are.
        self._master = connect(redis, timeout_s=limits.REDIS_WRITE_S, connections_max=1)
        self._index = BlockIndex(self._client, weights, limits.REDIS_WRITE_S)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._index.aclose()
        with guard():
            await self._master.aclose()

    async def models(self, only: str | None = None) -> list[ModelIndex]:
        """Read the state of all endpoints, or those of one model."""
        known = await _read(self._client.hgetall(MODELS_KEY))
        found = []
        for name, count in sorted(known.items()):
            model, shards = ModelName(name.decode()), _whole(count)
            if only is None or only == model:
                states = [one for s in shards_of(model, shards) for one in await self._states(s)]
                found.append(ModelIndex(model, shards, states, await self._gauges(model)))
        return found

    async def _gauges(self, model: ModelName) -> list[EndpointGauges]:
        board = await GaugeReader(self._master).read(LoadKeys(model))
        gauges = []
        for name, text in sorted(board.texts.items()):
            with suppress(ValueError):
                shared = SharedSample.from_text(text.decode())
                gauges.append(_gauges(name, shared, board.now_ms))
        return gauges

    async def _states(self, shard: Shard) -> list[EndpointState]:
        members = await _read(self._client.smembers(shard.endpoints))
        names = sorted(EndpointName(member.decode()) for member in members)
        return [
            _state(name, shard.number, await _read(self._client.hgetall(shard.endpoint(name))))
            for name in names
        ]

    async def match(
        self, model: ModelIndex, hashes: Sequence[BlockHash]
    ) -> dict[EndpointName, Match]:
        """Find how many leading blocks each endpoint holds, with the router's own lookup."""
        return await self._index.match(shards_of(model.model, model.shards), hashes)

    async def holders(self, model: ModelIndex, block: BlockHash) -> list[Holder]:
        """List who holds one block, live holders only."""
        found = []
        for shard in shards_of(model.model, model.shards):
            ids: set[HolderId] = set()
            for windowed in (False, True):
                key, field = shard.entry(block, windowed=windowed)
                ids |= set(parse_holder_ids(await _read(self._client.hget(key, field)) or b""))
            live = await _read(self._client.hgetall(shard.holders))
            found += [holder for i, holder in _holders(live) if i in ids]
        return found


async def _read(reply: Awaitable[Any]) -> Any:
    """Await a reply; redis-py types it more loosely than our connections answer."""
    with guard():
        return await reply


def _state(name: EndpointName, shard: int, raw: Mapping[bytes, bytes]) -> EndpointState:
    fields = {key.decode(): value.decode() for key, value in raw.items()}
    return EndpointState(
        name=name,
        shard=shard,
        epoch=_whole(fields.get("epoch")),
        seq=_whole(fields.get("seq")),
        blocks=_whole(fields.get("blocks")),
        block_size=_whole(fields.get("block_size")) or None,
        reason=fields.get("reason", ""),
        since_s=float(fields.get("since") or 0),
        event_s=float(fields.get("event_time") or 0),
        pools={
            key.removeprefix(POOL_PREFIX): _whole(value)
            for key, value in sorted(fields.items())
            if key.startswith(POOL_PREFIX)
        },
        groups=fields.get("groups", ""),
        unmatched=fields.get("unmatched", ""),
        phase=fields.get("phase", ""),
        owner=fields.get("owner", ""),
        lag_s=float(fields.get("lag", 0)),
        followed_s=float(fields.get("followed") or 0),
        counts={name: _whole(fields.get(name)) for name in COUNTS},
    )


def _gauges(name: EndpointName, shared: SharedSample, now_ms: int) -> EndpointGauges:
    gauges = shared.sample.gauges
    return EndpointGauges(
        name=name,
        age_s=(now_ms - shared.at_ms) / 1e3,
        due_s=shared.every_ms / 1e3,
        is_up=shared.sample.is_up,
        running=gauges.running,
        waiting=gauges.waiting,
        kv_usage=gauges.kv_usage,
        blocks=gauges.blocks,
        adapters=sorted(gauges.adapters.running | gauges.adapters.waiting),
    )


def _whole(value: str | bytes | None) -> int:
    return int(value or 0)


def _holders(raw: Mapping[bytes, bytes]) -> list[tuple[HolderId, Holder]]:
    return [
        (HolderId(int(key)), Holder.from_text(text.decode()))
        for key, text in raw.items()
        if key.isdigit()
    ]

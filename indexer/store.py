"""The only writer of the block index.

Every write names the endpoint's epoch and, for entries, the sequence that it starts from, and is
refused when Redis holds another (WrongEpoch). Entries are set or cleared, never incremented, so
every write is safe to repeat; one that timed out may or may not have happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, WrongEpoch
from kvatlas.common.ids import BlockHash, EndpointName, Epoch, HolderId, ModelName
from kvatlas.common.keyspace import (
    BUCKETS,
    FLOOR_FIELD,
    MODELS_KEY,
    SCHEMA_KEY,
    SCHEMA_VERSION,
    Holder,
    Shard,
    read_epoch,
)
from kvatlas.common.redis_client import (
    Memory,
    RedisArg,
    Script,
    connect,
    guard,
    lives,
    memories,
)
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.common.setting_sections import RedisSettings

REFUSED = -1


@dataclass(frozen=True, slots=True)
class Target:
    """Which endpoint is written, and where to."""

    name: EndpointName
    shard: Shard

    @property
    def key(self) -> str:
        """Name the HASH with the endpoint's state."""
        return self.shard.endpoint(self.name)


class Change(NamedTuple):
    """A block, one of its possible holders, and whether that one holds it.

    Attributes:
        windowed: the holder's group keeps a window or a state, its blocks stand in `w:`.
    """

    block: BlockHash
    holder: HolderId
    present: bool
    windowed: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """Where the index stands for an endpoint: all batches up to `seq` of `epoch` are in it."""

    epoch: Epoch
    seq: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a write gets.

    Attributes:
        seq: sequence of the newest batch that is in the index then.
        time_s: the engine's time stamp on that batch, Unix seconds.
    """

    seq: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Holders of past epochs whose ids may still stand in entries.

    Attributes:
        texts: what each id stood for, and when it died.
    """

    texts: Mapping[str, bytes]

    @property
    def has_windowed(self) -> bool:
        """Tell whether some of them may stand in the buckets `w:`."""
        return any(map(_may_be_windowed, self.texts.values()))


BEFORE_FIRST = -1
"""The sequence of an epoch in which nothing has been applied."""


class IndexStore:
    """The block index in Redis, for writing.

    Every method raises IndexUnavailable when Redis does not answer in REDIS_WRITE_S, or refuses.
    """

    def __init__(self, client: OneRedis | RoutedRedis) -> None:
        self._client = client
        self.foreign = 0
        """Entries left out since the start, their buckets being keys of another type."""
        self._open_epoch = Script("open_epoch")
        self._open_pool = Script("open_pool")
        self._apply = Script("apply")
        self._sweep = Script("sweep")
        self._release = Script("release")
        self._take_doubts = Script("take_doubts")

    @classmethod
    def connect(cls, redis: str | RedisSettings) -> IndexStore:
        """Make a writer; nothing is sent yet."""
        return cls(
            connect(
                redis,
                timeout_s=limits.REDIS_WRITE_S,
                connections_max=limits.REDIS_WRITE_CONNECTIONS_MAX,
            )
        )

    async def prepare(self, models: Mapping[ModelName, int]) -> None:
        """Check the schema and enter the models.

        Args:
            models: shards by model.

        Raises:
            ConfigError: the index was written by another version of the schema.
        """
        with guard():
            # Nothing is written that is there: a full Redis, or paused writes, are no fault here.
            found = await self._client.get(SCHEMA_KEY)
            if found is None:
                await self._client.set(SCHEMA_KEY, SCHEMA_VERSION, nx=True)
                found = await self._client.get(SCHEMA_KEY)
            # A Redis that was emptied between the two holds none.
            if found is not None and found != SCHEMA_VERSION.encode():
                text = f"redis: schema {found!r} is there, this is {SCHEMA_VERSION!r}"
                raise ConfigError([f"{text} (docs/REDIS.md, Schema)"])
            known: Mapping[Any, Any] = await self._client.hgetall(MODELS_KEY)
            mapping: dict[Any, Any] = {
                str(name): shards
                for name, shards in models.items()
                if known.get(name.encode()) != str(shards).encode()
            }
            if mapping:
                await self._client.hset(MODELS_KEY, mapping=mapping)

    async def lives(self, shards: Sequence[Shard]) -> dict[Shard, str]:
        """Name the life of each shard's server; another one may have lost what was written."""
        found = await lives(self._client, [shard.holders for shard in shards])
        return {shard: found[shard.holders] for shard in shards}

    async def memories(self, shards: Sequence[Shard]) -> dict[Shard, Memory]:
        """Say how the shards' servers stand with their memory."""
        found = await memories(self._client, [shard.holders for shard in shards])
        return {shard: found[shard.holders] for shard in shards}

    async def raise_ids(self, shard: Shard, floor: int) -> None:
        """Give out no holder id below a number from now on."""
        with guard():
            await self._client.hset(shard.holders, FLOOR_FIELD, str(floor))

    async def live_holders(self, shard: Shard) -> dict[HolderId, bytes]:
        """Read what the shard's holder ids stand for."""
        with guard():
            found: Mapping[Any, Any] = await self._client.hgetall(shard.holders)
        return {HolderId(int(key)): text for key, text in found.items() if key.isdigit()}

    async def position(self, target: Target) -> Position | None:
        """Read back where the index stands; None when it knows nothing of the endpoint."""
        with guard():
            epoch, seq = await self._client.hmget(target.key, ["epoch", "seq"])
        if epoch is None or seq is None:
            return None
        return Position(Epoch(int(epoch)), int(seq))

    async def open_epoch(
        self,
        target: Target,
        believed: Epoch | None,
        reason: str,
        now_s: float,
        fields: Mapping[str, RedisArg] = MappingProxyType({}),
    ) -> Epoch:
        """Forget, in one write, what the endpoint's former epoch held.

        Args:
            target: the endpoint.
            believed: epoch that Redis should hold, or None to follow whatever it holds.
            reason: one word, for people.
            now_s: Unix seconds, for people.
            fields: what else the endpoint's state should say.

        Raises:
            WrongEpoch: Redis holds another epoch than the believed one.
        """
        shard, name = target.shard, target.name
        keys = (target.key, shard.holders, shard.dead, shard.endpoints)
        pairs = [part for pair in fields.items() for part in pair]
        known = "" if believed is None else believed
        args = (known, BEFORE_FIRST, reason, f"{now_s:.3f}", name, *pairs)
        epoch = await self._open_epoch.run(self._client, keys, args)
        return Epoch(_accepted(epoch))

    async def open_pool(
        self, shard: Shard, holder: Holder, fields: Mapping[str, RedisArg]
    ) -> HolderId:
        """Get the id under which one pool of an endpoint holds blocks in this epoch.

        Args:
            shard: where the endpoint's blocks live.
            holder: endpoint, epoch and pool.
            fields: what else the endpoint's state should say.

        Raises:
            WrongEpoch: the epoch is over.
        """
        keys = (shard.endpoint(holder.endpoint), shard.holders, shard.dead)
        pairs = [part for pair in fields.items() for part in pair]
        args = (holder.epoch, str(holder.pool), holder.to_text(), *pairs)
        return HolderId(_accepted(await self._open_pool.run(self._client, keys, args)))

    async def apply(
        self,
        target: Target,
        at: Position,
        to: Progress,
        changes: Sequence[Change],
    ) -> int:
        """Write entries and move the sequence, all or nothing.

        Args:
            target: the endpoint.
            at: where the index stands.
            to: where it stands afterwards; the sequence of `at` when more of the same follows.
            changes: OPS_PER_SCRIPT_MAX at most.

        Returns:
            Entries that changed.

        Raises:
            WrongEpoch: the index does not stand there; nothing was written.
        """
        keys = [target.key]
        args: list[RedisArg] = [at.epoch, at.seq, to.seq, to.time_s]
        for block, holder, present, windowed in changes:
            key, field = target.shard.entry(block, windowed=windowed)
            keys.append(key)
            args += (field, f"{'+' if present else '-'}{holder}")
        answer = await self._apply.run(self._client, keys, args)
        if isinstance(answer, list):
            answer, left_out = answer
            self.foreign += left_out
        return _accepted(answer)

    async def known_endpoints(self, shard: Shard) -> set[EndpointName]:
        """List the endpoints that the shard has a state for."""
        with guard():
            return {
                EndpointName(name.decode() if isinstance(name, bytes) else name)
                for name in await self._client.smembers(shard.endpoints)
            }

    async def retire(self, target: Target, now_s: float) -> None:
        """Forget an endpoint for good: what it held, and its state."""
        await self.open_epoch(target, None, "removed", now_s)
        with guard():
            await self._client.srem(target.shard.endpoints, target.name)
            await self._client.hdel(target.shard.relearning, target.name)
            await self._client.delete(target.key)

    async def dead_holders(self, shard: Shard) -> Dead:
        """List the holders of past epochs whose entries are still there."""
        with guard():
            found: Mapping[Any, Any] = await self._client.hgetall(shard.dead)
        return Dead({str(int(key)): text for key, text in found.items()})

    async def sweep(self, shard: Shard, dead: Dead, first: int, *, windowed: bool = False) -> int:
        """Take dead holders out of SWEEP_BUCKETS_PER_CALL buckets.

        Args:
            shard: the shard.
            dead: as `dead_holders` gave them when the pass began.
            first: number of the first bucket.
            windowed: the buckets are those of `w:`.

        Returns:
            Entries that changed.
        """
        last = min(first + limits.SWEEP_BUCKETS_PER_CALL, BUCKETS)
        numbers = range(first, last)
        keys = [shard.dead, *(shard.bucket(number, windowed=windowed) for number in numbers)]
        changed: int = await self._sweep.run(self._client, keys, list(dead.texts))
        return changed

    async def release(self, shard: Shard, dead: Dead) -> None:
        """Give the ids of dead holders free, after a whole pass without a miss."""
        args = [part for pair in dead.texts.items() for part in pair]
        await self._release.run(self._client, (shard.dead,), args)

    async def take_doubts(self, shard: Shard) -> dict[EndpointName, Epoch]:
        """Take the notes that routers have left: endpoint, and the epoch that ran over.

        What cannot be read is dropped.
        """
        args = (limits.DOUBTS_PER_SHARD_MAX,)
        flat = await self._take_doubts.run(self._client, (shard.doubts,), args)
        doubts = {}
        for name, note in zip(flat[::2], flat[1::2], strict=True):
            epoch = read_epoch(note.split(b" ", 1)[0])
            if epoch is not None:
                doubts[EndpointName(name.decode(errors="replace"))] = epoch
        return doubts

    async def tell(self, stands: Sequence[tuple[Target, Mapping[str, RedisArg]]]) -> None:
        """Write how the indexer stands with endpoints into their states, in one round trip."""
        with guard():
            pipe = self._client.pipeline(transaction=False)
            for target, fields in stands:
                mapping: dict[Any, Any] = dict(fields)
                pipe.hset(target.key, mapping=mapping)
                # Of its own, so that routers read one small key instead of every state.
                if relearned := fields.get("relearning"):
                    pipe.hset(target.shard.relearning, target.name, relearned)
                else:
                    pipe.hdel(target.shard.relearning, target.name)
            await pipe.execute()

    async def aclose(self) -> None:
        """Close the connections."""
        with guard():
            await self._client.aclose()


def _may_be_windowed(text: bytes) -> bool:
    """Tell whether a dead holder's entries may stand in `w:`; so may those of a foreign text."""
    try:
        return Holder.from_text(text.decode()).is_windowed
    except ValueError:
        return True


def _accepted(answer: int) -> int:
    if answer == REFUSED:
        raise WrongEpoch
    return answer

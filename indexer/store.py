"""The only writer of the block index.

Every write names the endpoint's epoch and, for entries, the sequence that it starts from, and is
refused when Redis holds another (WrongEpoch). Entries are set or cleared, never incremented, so
every write is safe to repeat; one that timed out may or may not have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, WrongEpoch
from kvatlas.common.ids import BlockHash, EndpointName, Epoch, HolderId, ModelName
from kvatlas.common.keyspace import (
    BUCKETS,
    MODELS_KEY,
    SCHEMA_KEY,
    SCHEMA_VERSION,
    Holder,
    Shard,
    hex_digits,
    read_epoch,
)
from kvatlas.common.redis_client import RedisArg, Script, connect, guard, lives
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


@dataclass(frozen=True, slots=True)
class Change:
    """Blocks that one holder has come to hold, or holds no longer.

    Attributes:
        windowed: the holder's group keeps a window or a state, its blocks stand in `w:`.
    """

    holder: HolderId
    blocks: Sequence[BlockHash]
    present: bool
    windowed: bool = False


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
class Position:
    """Where the index stands for an endpoint: all batches up to `seq` of `epoch` are in it.

    Attributes:
        part: writes since then that were parts of what follows. Counted so that a part that a
            failover lost is missed, though the sequence stays the same.
    """

    epoch: Epoch
    seq: int
    part: int = 0

    def after(self, to: Progress) -> Position:
        """Give where the index stands after a write."""
        part = self.part + 1 if to.seq == self.seq else 0
        return Position(self.epoch, to.seq, part)


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

    Args:
        client: for what is rare.
        shared: for scripts, and what must come after them: those of all endpoints share one
            connection to each server, so that what is written at once travels together.
    """

    def __init__(self, client: OneRedis | RoutedRedis, shared: OneRedis | RoutedRedis) -> None:
        self._client = client
        self._shared = shared
        self._room = asyncio.Semaphore(limits.REDIS_WRITES_AT_ONCE_MAX)
        self._open_epoch = Script("open_epoch")
        self._open_pool = Script("open_pool")
        self._apply = Script("apply")
        self._sweep = Script("sweep")
        self._release = Script("release")
        self._take_doubts = Script("take_doubts")

    @classmethod
    def connect(cls, redis: str | RedisSettings) -> IndexStore:
        """Make a writer; nothing is sent yet."""
        patience = limits.REDIS_WRITE_S
        few = limits.REDIS_WRITE_CONNECTIONS_MAX
        return cls(
            connect(redis, timeout_s=patience, connections_max=few),
            connect(redis, timeout_s=patience, connections_max=None),
        )

    async def prepare(self, models: Mapping[ModelName, int]) -> None:
        """Check the schema and enter the models.

        Args:
            models: shards by model.

        Raises:
            ConfigError: the index was written by another version of the schema.
        """
        with guard():
            await self._client.set(SCHEMA_KEY, SCHEMA_VERSION, nx=True)
            found = await self._client.get(SCHEMA_KEY)
            # A Redis that was emptied between the two holds none.
            if found is not None and found != SCHEMA_VERSION.encode():
                text = f"redis: schema {found!r} is there, this is {SCHEMA_VERSION!r}"
                raise ConfigError([f"{text} (docs/REDIS.md, Schema)"])
            if models:
                mapping: dict[Any, Any] = {str(name): shards for name, shards in models.items()}
                await self._client.hset(MODELS_KEY, mapping=mapping)

    async def lives(self, shards: Sequence[Shard]) -> dict[Shard, str]:
        """Name the life of each shard's server; another one may have lost what was written."""
        found = await lives(self._client, [shard.holders for shard in shards])
        return {shard: found[shard.holders] for shard in shards}

    async def position(self, target: Target) -> Position | None:
        """Read back where the index stands; None when it knows nothing of the endpoint."""
        # Behind what was written, on the same connection, however long it waits there.
        with guard():
            async with asyncio.timeout(limits.REDIS_WRITE_S):
                found = await self._shared.hmget(target.key, ["epoch", "seq", "part"])
        epoch, seq, part = found
        if epoch is None or seq is None:
            return None
        return Position(Epoch(int(epoch)), int(seq), int(part or 0))

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
        epoch = await self._run(self._open_epoch, keys, args)
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
        return HolderId(_accepted(await self._run(self._open_pool, keys, args)))

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
            to: how far it gets; the sequence of `at` when more of the same follows.
            changes: of OPS_PER_SCRIPT_MAX blocks at most. What comes first decides whether a full
                Redis (OOM) takes them: removals make room for what comes after.

        Returns:
            Entries that changed.

        Raises:
            WrongEpoch: the index does not stand there; nothing was written.
        """
        keys, runs, packed = [target.key], [], []
        for change in changes:
            digits = hex_digits(change.blocks)
            keys += target.shard.buckets_of(digits, windowed=change.windowed)
            runs.append(f"{'+' if change.present else '-'}{change.holder}:{len(change.blocks)}")
            packed.append(digits)
        header = (at.epoch, at.seq, at.part, to.seq, at.after(to).part, to.time_s)
        args = (*header, " ".join(runs), "".join(packed))
        return _accepted(await self._run(self._apply, keys, args))

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
        """List holders of past epochs whose entries are still there, as many as a pass takes."""
        with guard():
            found: Mapping[Any, Any] = await self._client.hgetall(shard.dead)
        some = islice(found.items(), limits.SWEEP_HOLDERS_MAX)
        return Dead({str(int(key)): text for key, text in some})

    async def sweep(
        self, shard: Shard, dead: Dead, first: int, *, windowed: bool = False
    ) -> tuple[int, int]:
        """Take dead holders out of some buckets: SWEEP_BUCKETS_PER_CALL, or fewer where much is.

        Args:
            shard: the shard.
            dead: as `dead_holders` gave them when the pass began.
            first: number of the first bucket.
            windowed: the buckets are those of `w:`.

        Returns:
            The number of the bucket to go on from, and entries that changed.
        """
        last = min(first + limits.SWEEP_BUCKETS_PER_CALL, BUCKETS)
        numbers = range(first, last)
        keys = [shard.dead, *(shard.bucket(number, windowed=windowed) for number in numbers)]
        args: list[RedisArg] = [limits.SWEEP_BYTES_PER_CALL, *dead.texts]
        done, changed = await self._run(self._sweep, keys, args)
        return first + done, changed

    async def release(self, shard: Shard, dead: Dead) -> None:
        """Give the ids of dead holders free, after a whole pass without a miss."""
        args = [part for pair in dead.texts.items() for part in pair]
        await self._run(self._release, (shard.dead,), args)

    async def take_doubts(self, shard: Shard) -> dict[EndpointName, Epoch]:
        """Take the notes that routers have left: endpoint, and the epoch that ran over.

        What cannot be read is dropped.
        """
        args = (limits.DOUBTS_PER_SHARD_MAX,)
        flat = await self._run(self._take_doubts, (shard.doubts,), args)
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
            await self._shared.aclose()

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[RedisArg]) -> Any:
        async with self._room:
            with guard():
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    return await script.run(self._shared, keys, args)


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

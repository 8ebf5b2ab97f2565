"""The only writer of the block index.

Every write names the endpoint's epoch and, for entries, the sequence that it starts from, and is
refused when Redis holds another (WrongEpoch). Entries are set or cleared, never incremented, so
every write is safe to repeat; one that timed out may or may not have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, Fenced, WrongEpoch
from kvatlas.common.ids import EndpointName, Epoch, HolderId, ModelName
from kvatlas.common.keyspace import (
    BUCKETS,
    FLOOR_FIELD,
    MODELS_KEY,
    SCHEMA_KEY,
    SCHEMA_VERSION,
    Holder,
    Shard,
    hex_digits,
    read_epoch,
)
from kvatlas.common.redis_client import (
    RedisArg,
    Script,
    ServerFacts,
    ask_servers,
    connect,
    flat,
    guard,
)
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.indexer.memory import OUTLINE_FIELD, PAGES
from kvatlas.indexer.targets import (
    BEFORE_FIRST,
    Change,
    Dead,
    Opening,
    Position,
    Progress,
    Remembered,
    Target,
)

WRONG_EPOCH: Final = -1
FENCED: Final = -2
PAGES_PER_READ: Final = 4
"""Pages of an endpoint of a million blocks are 265 kB each."""


class IndexStore:
    """The block index in Redis, for writing.

    Every method raises IndexUnavailable when Redis does not answer in REDIS_WRITE_S, or refuses.

    Args:
        client: for what is rare.
        shared: for scripts, and what must come after them: those of all endpoints share one
            connection to each server, so that what is written at once travels together.
    """

    def __init__(self, client: OneRedis | RoutedRedis, shared: OneRedis | RoutedRedis) -> None:
        self.client = client
        """For other writers of the process; see `leases`."""
        self._shared = shared
        self._room = asyncio.Semaphore(limits.REDIS_WRITES_AT_ONCE_MAX)
        self.foreign = 0
        """Entries left out since the start, their buckets being keys of another type."""
        self._open_epoch = Script("open_epoch")
        self._open_pool = Script("open_pool")
        self._apply = Script("apply")
        self._sweep = Script("sweep")
        self._release = Script("release")
        self._take_doubts = Script("take_doubts")
        self._retire = Script("retire")
        self._tell = Script("tell")

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
            # Nothing is written that is there: a full Redis, or paused writes, are no fault here.
            found = await self.client.get(SCHEMA_KEY)
            if found is None:
                await self.client.set(SCHEMA_KEY, SCHEMA_VERSION, nx=True)
                found = await self.client.get(SCHEMA_KEY)
            # A Redis that was emptied between the two holds none.
            if found is not None and found != SCHEMA_VERSION.encode():
                text = f"redis: schema {found!r} is there, this is {SCHEMA_VERSION!r}"
                raise ConfigError([f"{text} (docs/REDIS.md, Schema)"])
            known: Mapping[Any, Any] = await self.client.hgetall(MODELS_KEY)
            mapping: dict[Any, Any] = {
                str(name): shards
                for name, shards in models.items()
                if known.get(name.encode()) != str(shards).encode()
            }
            if mapping:
                await self.client.hset(MODELS_KEY, mapping=mapping)

    async def servers(self, shards: Sequence[Shard]) -> dict[Shard, ServerFacts]:
        """Say what is known of the server of each shard."""
        found = await ask_servers(self.client, [shard.holders for shard in shards])
        return {shard: found[shard.holders] for shard in shards}

    async def raise_ids(self, shard: Shard, floor: int) -> None:
        """Give out no holder id below a number from now on."""
        with guard():
            await self.client.hset(shard.holders, FLOOR_FIELD, str(floor))

    async def live_holders(self, shard: Shard) -> dict[HolderId, bytes]:
        """Read what the shard's holder ids stand for."""
        with guard():
            found: Mapping[Any, Any] = await self.client.hgetall(shard.holders)
        return {HolderId(int(key)): text for key, text in found.items() if key.isdigit()}

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

    async def remembered(self, target: Target) -> Remembered | None:
        """Read what the endpoint's former owner has left; None where it cannot be gone on from."""
        key = target.shard.memory(target.name)
        with guard():
            fields = ["epoch", "seq", "part", "event_time", "proof", "relearn_s"]
            state: list[Any] = await self.client.hmget(target.key, fields)
            epoch, seq, part, time_s, proof, relearn_s = state
            outline: Any = await self.client.hget(key, OUTLINE_FIELD)
            if None in (epoch, seq, proof, outline):
                return None
            pages: list[Any] = []
            for first in range(0, PAGES, PAGES_PER_READ):
                numbers = [str(number) for number in range(first, first + PAGES_PER_READ)]
                pages += await self.client.hmget(key, numbers)
        at = Position(Epoch(int(epoch)), int(seq), int(part or 0))
        return Remembered(at, float(time_s or 0.0), proof, float(relearn_s or 0.0), outline, pages)

    async def open_epoch(self, target: Target, believed: Epoch | None, opening: Opening) -> Epoch:
        """Forget, in one write, what the endpoint's former epoch held.

        Args:
            target: the endpoint.
            believed: epoch that Redis should hold, or None to follow whatever it holds.
            opening: why and how.

        Raises:
            WrongEpoch: Redis holds another epoch than the believed one.
            Fenced: the endpoint has another owner.
        """
        shard, name = target.shard, target.name
        keys = (target.key, shard.holders, shard.dead, shard.endpoints, shard.memory(name))
        args: list[RedisArg] = [target.fence, "" if believed is None else believed, BEFORE_FIRST]
        args += [opening.reason, f"{opening.now_s:.3f}", name, int(opening.forgets)]
        args += flat(opening.fields)
        return Epoch(_accepted(await self._run(self._open_epoch, keys, args)))

    async def open_pool(
        self, target: Target, holder: Holder, fields: Mapping[str, RedisArg]
    ) -> HolderId:
        """Get the id under which one pool of an endpoint holds blocks in this epoch.

        Args:
            target: the endpoint.
            holder: endpoint, epoch and pool.
            fields: what else the endpoint's state should say.

        Raises:
            WrongEpoch: the epoch is over.
            Fenced: the endpoint has another owner.
        """
        keys = (target.key, target.shard.holders, target.shard.dead)
        args = (target.fence, holder.epoch, str(holder.pool), holder.to_text(), *flat(fields))
        return HolderId(_accepted(await self._run(self._open_pool, keys, args)))

    async def apply(
        self,
        target: Target,
        at: Position,
        to: Progress,
        changes: Sequence[Change],
        memory: Mapping[str, RedisArg] = MappingProxyType({}),
    ) -> int:
        """Write entries and move the sequence, all or nothing.

        Args:
            target: the endpoint.
            at: where the index stands.
            to: how far it gets; the sequence of `at` when more of the same follows.
            changes: of OPS_PER_SCRIPT_MAX blocks at most. A full Redis (OOM) refuses all of them
                where one that stores comes first, and takes them where one that removes does.
            memory: what is to be remembered as of then, by field.

        Returns:
            Entries that changed.

        Raises:
            WrongEpoch: the index does not stand there; nothing was written.
            Fenced: the endpoint has another owner; alike.
        """
        keys, runs, packed = [target.key, target.shard.memory(target.name)], [], []
        for change in changes:
            digits = hex_digits(change.blocks)
            keys += target.shard.buckets_of(digits, windowed=change.windowed)
            runs.append(f"{'+' if change.present else '-'}{change.holder}:{len(change.blocks)}")
            packed.append(digits)
        args: list[RedisArg] = [target.fence, at.epoch, at.seq, at.part]
        args += [to.seq, at.after(to).part, to.time_s, to.proof, " ".join(runs), "".join(packed)]
        args += flat(memory)
        answer = await self._run(self._apply, keys, args)
        if isinstance(answer, list):
            answer, left_out = answer
            self.foreign += left_out
        return _accepted(answer)

    async def known_endpoints(self, shard: Shard) -> set[EndpointName]:
        """List the endpoints that the shard has a state for."""
        with guard():
            return {
                EndpointName(name.decode() if isinstance(name, bytes) else name)
                for name in await self.client.smembers(shard.endpoints)
            }

    async def retire(self, target: Target, now_s: float) -> bool:
        """Forget an endpoint for good: what it held, and its state.

        Returns:
            False when the endpoint is no longer the caller's.

        Raises:
            Fenced: alike.
        """
        await self.open_epoch(target, None, Opening("removed", now_s))
        shard, name = target.shard, target.name
        keys = (target.key, shard.memory(name), shard.owners, shard.endpoints, shard.relearning)
        return bool(await self._run(self._retire, keys, (target.fence, name)))

    async def dead_holders(self, shard: Shard) -> Dead:
        """List holders of past epochs whose entries are still there, as many as a pass takes."""
        with guard():
            found: Mapping[Any, Any] = await self.client.hgetall(shard.dead)
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
        await self._run(self._release, (shard.dead,), flat(dead.texts))

    async def take_doubts(
        self, shard: Shard, names: Iterable[EndpointName]
    ) -> dict[EndpointName, Epoch]:
        """Take the notes that routers have left: endpoint, and the epoch that ran over.

        What cannot be read is dropped.

        Args:
            shard: whose notes.
            names: whose as well; notes on other endpoints are their owners' to take.
        """
        args: list[RedisArg] = [limits.DOUBTS_PER_SHARD_MAX, *names]
        notes = await self._run(self._take_doubts, (shard.doubts, shard.endpoints), args)
        doubts = {}
        for name, note in zip(notes[::2], notes[1::2], strict=True):
            epoch = read_epoch(note.split(b" ", 1)[0])
            if epoch is not None:
                doubts[EndpointName(name.decode(errors="replace"))] = epoch
        return doubts

    async def tell(self, target: Target, fields: Mapping[str, RedisArg]) -> None:
        """Write how the indexer stands with an endpoint into its state, if it is still ours."""
        keys = (target.key, target.shard.relearning)
        args = (target.fence, target.name, fields.get("relearning", ""), *flat(fields))
        await self._run(self._tell, keys, args)

    async def aclose(self) -> None:
        """Close the connections."""
        with guard():
            await self.client.aclose()
            await self._shared.aclose()

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[RedisArg]) -> Any:
        async with self._room:
            with guard():
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    return await script.run(self._shared, keys, args)


def _accepted(answer: int) -> int:
    if answer == FENCED:
        raise Fenced
    if answer == WRONG_EPOCH:
        raise WrongEpoch
    return answer

"""Many engines that store and remove blocks, and what a full scan of Redis finds of them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, EndpointName, ModelName
from kvatlas.common.keyspace import Holder, Shard, parse_holder_ids, shard_of, shards_of
from kvatlas.common.settings import Settings
from tests.fakes.publisher import FakePublisher, removed, stored

MODEL = ModelName("org/big model")
SIZE = 4
CHAIN_MAX = 12
SCAN_KEYS = 1_000
"""Read in one round trip."""


@dataclass
class BlockEngine:
    """An engine that announces what it stores and removes, and knows what it holds.

    Attributes:
        prompts: tokens and engine hashes of each chain that is still there, oldest first.
        prompts_max: chains from which on some are removed.
        copies: further copies of a block, by engine hash.
    """

    name: EndpointName
    publisher: FakePublisher
    source: random.Random
    prompts: list[tuple[list[int], list[int]]] = field(default_factory=list)
    next_hash: int = 1
    prompts_max: int = 8
    copies: Counter[int] = field(default_factory=Counter)

    async def step(self) -> None:
        """Store a chain, or remove blocks from the tail of the oldest one."""
        if len(self.prompts) > self.prompts_max and self.source.random() < 0.5:
            tokens, hashes = self.prompts[0]
            count = self.source.randint(1, len(hashes))
            gone = hashes[-count:]
            del hashes[-count:], tokens[-count * SIZE :]
            if not hashes:
                del self.prompts[0]
            every = [one for one in reversed(gone) for _ in range(1 + self.copies.pop(one, 0))]
            await self.publisher.publish(*map(removed, every))
            return
        count = self.source.randint(1, CHAIN_MAX)
        tokens = [self.source.randint(0, 99_999) for _ in range(count * SIZE)]
        hashes = list(range(self.next_hash, self.next_hash + count))
        self.next_hash += count
        self.prompts.append((tokens, hashes))
        await self.publisher.publish(stored(list(hashes), list(tokens)))

    async def copy(self) -> None:
        """Store a chain once more, or remove a copy: nothing of it comes or goes."""
        if self.copies and self.source.random() < 0.5:
            one = self.source.choice(list(self.copies))
            self.copies.subtract([one])
            self.copies = +self.copies
            await self.publisher.publish(removed(one))
            return
        tokens, hashes = self.source.choice(self.prompts)
        self.copies.update(hashes)
        await self.publisher.publish(stored(list(hashes), list(tokens)))

    def blocks(self) -> set[BlockHash]:
        """List what it holds, by our hashes."""
        root = root_hash(MODEL, SIZE)
        return {block for tokens, _ in self.prompts for block in chain(root, tokens, SIZE)}

    def longest(self) -> list[BlockHash]:
        """Give its longest chain."""
        tokens = max((tokens for tokens, _ in self.prompts), key=len)
        return chain(root_hash(MODEL, SIZE), tokens, SIZE)


@dataclass
class BlockFleet:
    """Engines of one model whose index is spread over shards."""

    engines: list[BlockEngine]
    shards: int

    def settings(self, redis: Mapping[str, Any]) -> Settings:
        """Configure an indexer and a router for them."""
        return Settings.model_validate(
            {
                "redis": dict(redis),
                "models": [{"name": MODEL, "tokenizer": "-", "index_shards": self.shards}],
                "endpoints": [
                    {
                        "url": f"http://{engine.name}",
                        "model": MODEL,
                        "events": engine.publisher.events,
                        "replay": engine.publisher.replay,
                    }
                    for engine in self.engines
                ],
                "indexer": {"admin_port": 0},
            }
        )

    def shard_of(self, engine: BlockEngine) -> Shard:
        """Name the shard that an engine's blocks live in."""
        return shard_of(MODEL, engine.name, self.shards)

    def all_shards(self) -> tuple[Shard, ...]:
        """List the shards."""
        return shards_of(MODEL, self.shards)

    async def steps(self, count: int, pause_s: float = 0.002) -> None:
        """Let every engine take some steps."""
        for _ in range(count):
            for engine in self.engines:
                await engine.step()
            await asyncio.sleep(pause_s)

    def differences(self, servers: Iterable[Redis]) -> list[str]:
        """Compare what the engines hold with what a full scan of Redis finds."""
        found = scan(servers, self.all_shards())
        lines = []
        for engine in self.engines:
            held, seen = engine.blocks(), found.pop(engine.name, set())
            if held != seen:
                lines.append(f"{engine.name}: -{len(held - seen)} +{len(seen - held)}")
        return lines + [f"{name}: not known" for name in found]

    async def settled(self, servers: Sequence[Redis], seconds: float = 15.0) -> None:
        """Wait until Redis holds exactly what the engines hold."""
        deadline = asyncio.get_running_loop().time() + seconds
        while lines := await asyncio.to_thread(self.differences, servers):
            assert asyncio.get_running_loop().time() < deadline, lines
            await asyncio.sleep(0.1)


@dataclass
class FoundShard:
    """What a full scan finds of one shard: entries, and what holder ids stand for."""

    entries: dict[BlockHash, bytes] = field(default_factory=dict)
    live: dict[int, EndpointName] = field(default_factory=dict)

    def take(self, name: str, fields: Mapping[bytes, bytes]) -> None:
        """Take in a key by what stands behind the shard's base."""
        if name == "holders":
            self.live = {
                int(number): Holder.from_text(text.decode()).endpoint
                for number, text in fields.items()
                if number.isdigit()
            }
        for rest, value in fields.items() if name.startswith("b:") else ():
            block = BlockHash(int(name[2:] + rest.decode(), 16))
            assert block not in self.entries, f"{name} is on two servers"
            self.entries[block] = value

    def holdings(self) -> Iterator[tuple[EndpointName, BlockHash]]:
        """List who holds what."""
        for block, value in self.entries.items():
            for number in parse_holder_ids(value):
                if number in self.live:
                    yield self.live[number], block


def scan(servers: Iterable[Redis], shards: Sequence[Shard]) -> dict[EndpointName, set[BlockHash]]:
    """Read every entry on every server, without the product's lookup."""
    parts = {shard.base: FoundShard() for shard in shards}
    for server in servers:
        names = [
            (raw, base + brace, name)
            for raw in server.scan_iter("kvatlas:{*", count=1_000)
            for base, brace, name in [raw.decode().partition("}:")]
            if name == "holders" or name.startswith("b:")
        ]
        for start in range(0, len(names), SCAN_KEYS):
            some = names[start : start + SCAN_KEYS]
            pipe = server.pipeline(transaction=False)
            for raw, _, _ in some:
                pipe.hgetall(raw)
            for (_, base, name), fields in zip(some, pipe.execute(), strict=True):
                parts[base].take(name, fields)
    found: dict[EndpointName, set[BlockHash]] = {}
    for part in parts.values():
        for name, block in part.holdings():
            found.setdefault(name, set()).add(block)
    return found


@asynccontextmanager
async def block_fleet(engines: int, shards: int, seed: int = 1) -> AsyncIterator[BlockFleet]:
    """Run such engines until the context ends; as many shards as possible get one."""
    source = random.Random(seed)
    names = [EndpointName(f"127.0.3.{number}:1") for number in range(1, 250)]
    chosen: list[EndpointName] = []
    for number in range(engines):
        wanted = number % shards
        chosen.append(
            next(
                name
                for name in names
                if name not in chosen and shard_of(MODEL, name, shards).number == wanted
            )
        )
    async with AsyncExitStack() as stack:
        made = [
            BlockEngine(name, await stack.enter_async_context(FakePublisher()), source)
            for name in chosen
        ]
        yield BlockFleet(made, shards)

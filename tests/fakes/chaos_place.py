"""Everything that a fault may hit, run for real: engines, Redis, an indexer, a router, a client.

Redis stands behind a fault proxy, and so do the engines' sockets where a test asks for it. Each
engine has one chat cached that holds a canary: text that must turn up nowhere.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from redis.exceptions import RedisError

from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.indexer.feed import Feed
from kvatlas.router.app import Running, router
from kvatlas.router.lookup import BlockIndex
from tests.fakes.block_fleet import MODEL, SIZE, BlockFleet, scan
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.engines import until
from tests.fakes.fault_proxy import FaultProxy, fault_proxy
from tests.fakes.publisher import FakePublisher
from tests.fakes.redis_servers import Server, plain_options
from tests.fakes.redis_servers import running as run_servers
from tests.fakes.services import indexing
from tests.fakes.upstream import METRICS, Behaviour, plain, upstream

ANSWER = b'{"id": "x", "choices": []}'
PAGE = METRICS.replace(b'block_size="16"', b'block_size="%d"' % SIZE).replace(b"100", b"100000")
"""Engines here evict as they like, not because they are full."""


@dataclass(frozen=True)
class Scale:
    """How much a chaos test does: little in `make test`, what the issue names in `make chaos`."""

    engines: int
    batches: int
    rounds: int
    is_full: bool


@dataclass(frozen=True)
class Answer:
    """What a client saw of one request.

    Attributes:
        seconds: how long it took.
    """

    status: int
    endpoint: str
    match_tokens: int
    fallback: str | None
    seconds: float


@dataclass
class ChaosPlace:
    """All that runs, and what a test asks of it."""

    scale: Scale
    canary: Canary
    fleet: BlockFleet
    engines: list[ChaosEngine]
    server: Server
    redis: FaultProxy
    wires: list[FaultProxy]
    settings: Settings
    builder: PromptBuilder
    index: BlockIndex
    session: aiohttp.ClientSession
    indexer: Indexer
    running: Running

    def feed(self, engine: ChaosEngine) -> Feed:
        """Find how the indexer follows an engine."""
        return next(feed for feed in self.indexer.feeds if feed.name == engine.name)

    async def ask(self, engine: ChaosEngine, more: str | None = None) -> Answer:
        """Send an engine's chat, or one that begins otherwise, to the router."""
        chat = engine.chat
        if more is not None:
            chat = {**chat, "messages": [{"role": "system", "content": more}, *chat["messages"]]}
        began = time.monotonic()
        secret = {"Authorization": f"Bearer {self.canary.text}", "x-secret": self.canary.text}
        async with self.session.post(CHAT_PATH, json=chat, headers=secret) as reply:
            await reply.read()
            return Answer(
                reply.status,
                reply.headers.get("x-kvatlas-endpoint", ""),
                int(reply.headers.get("x-kvatlas-match-tokens", 0)),
                reply.headers.get("x-kvatlas-fallback"),
                time.monotonic() - began,
            )

    async def is_matched(self, engine: ChaosEngine) -> bool:
        """Tell whether an engine's chat is sent where it is cached, for that reason."""
        answer = await self.ask(engine)
        assert answer.status == 200
        return (answer.endpoint, answer.fallback) == (engine.name, None) and answer.match_tokens > 0

    async def matched(self, limit_s: float = 10.0) -> None:
        """Wait until every engine's chat is sent where it is cached."""
        deadline = time.monotonic() + limit_s
        for engine in self.engines:
            while not await self.is_matched(engine):
                assert time.monotonic() < deadline, engine.name
                await asyncio.sleep(0.02)

    async def batches(self) -> None:
        """Let every engine send as many batches as there are to be replayed."""
        for number in range(self.scale.batches):
            for engine in self.engines:
                await engine.step()
            if number % 10 == 0:
                await asyncio.sleep(0)

    async def recovered(self, since: float, limit_s: float = 15.0) -> float:
        """Wait until Redis holds what engines hold and requests are matched; give the seconds.

        What is quick to ask is asked first; the time is that of the moment after which a full
        scan of Redis finds no difference either.
        """
        while True:
            assert time.monotonic() - since < limit_s, await self._complaints()
            if not await self._seems_recovered():
                await asyncio.sleep(0.02)
                continue
            at = time.monotonic()
            if not await self.differences():
                return at - since

    async def settled(self) -> None:
        """Wait until all is as it should be."""
        await self.recovered(time.monotonic())

    async def differences(self) -> list[str]:
        """Compare engines and Redis by a full scan."""
        with self.server.client() as client:
            return await asyncio.to_thread(self.fleet.differences, [client])

    async def indexed(self) -> dict[EndpointName, set[BlockHash]]:
        """List, by a full scan, what Redis says that engines hold."""
        with self.server.client() as client:
            return await asyncio.to_thread(scan, [client], self.fleet.all_shards())

    async def claims(self) -> int:
        """Count the blocks that Redis says engines hold and they do not."""
        found = await self.indexed()
        return sum(len(found.get(each.name, set()) - each.blocks()) for each in self.engines)

    async def claims_nothing(self, limit_s: float = 10.0) -> None:
        """Wait until Redis claims no block that is not there."""
        deadline = time.monotonic() + limit_s
        while claims := await self.claims():
            assert time.monotonic() < deadline, claims
            await asyncio.sleep(0.05)

    async def _seems_recovered(self) -> bool:
        for engine in self.engines:
            feed, last = self.feed(engine), engine.publisher.next_seq - 1
            at = (feed.sequencer.phase, feed.sequencer.last_seq, feed.mirror.is_current)
            if at != ("live", last, True):
                return False
            try:
                if engine.prompts and not await self._is_found(engine):
                    return False
            except IndexUnavailable:
                return False
            if engine.chat_tokens and not await self.is_matched(engine):
                return False
        return True

    async def _is_found(self, engine: ChaosEngine) -> bool:
        longest = engine.longest()
        return await self.match_of(engine.name, longest) == len(longest)

    async def match_of(self, name: EndpointName, chain: list[BlockHash]) -> int:
        """Look up how much of a chain the index says that an endpoint holds."""
        found = await self.index.match(self.fleet.all_shards(), chain)
        return found[name].blocks if name in found else 0

    async def _complaints(self) -> str:
        states = [
            (f.name, f.sequencer.phase, f.sequencer.last_seq, f.mirror.is_current, f.mirror.failing)
            for f in self.indexer.feeds
        ]
        with suppress(RedisError):
            return f"{states} {await self.differences()}"
        return f"{states} Redis is away"

    def count(self, name: str, **labels: str) -> float:
        """Read a metric of the indexer or the router by its full name."""
        of_router = name.startswith("kvatlas_router")
        metrics = self.running.metrics if of_router else self.indexer.metrics
        return metrics.registry.get_sample_value(name, labels) or 0.0

    def fallbacks(self, reason: str) -> float:
        """Count the requests that went by load for a reason of the lookup."""
        return self.count("kvatlas_router_fallbacks_total", stage="lookup", reason=reason)

    def nothing_is_under_way(self) -> bool:
        """Tell whether all counts of what is under way are back at zero."""
        return self.running.desk.open_requests == 0 and all(
            (each.requests, each.awaiting, each.queued_tokens) == (0, 0, 0)
            for each in self.running.endpoints.all()
        )

    async def leave(self) -> None:
        """Check what must hold whatever happened: nothing under way, nothing leaked."""
        await until(self.nothing_is_under_way)
        self.canary.look_at_metrics(self.indexer.metrics.registry)
        self.canary.look_at_metrics(self.running.metrics.registry)
        with suppress(RedisError), self.server.client() as client:
            self.canary.look_into(client)


@dataclass
class Options:
    """What a test wants otherwise.

    Attributes:
        lookup_s: for Redis to answer; tests share two cores with everything else.
        wires: put a fault proxy before each engine's events, and one before its replays.
        engines: how many, where the scale does not say.
        publishers: what announces the engines' blocks; made here where they are not given.
        answer: how engines answer requests.
        server: a Redis that runs and is empty; one is started where it is not given.
        router: further settings of the router.
        model: further settings of the model.
        redis: further settings of Redis.
    """

    lookup_s: float = 0.25
    wires: bool = False
    engines: int | None = None
    publishers: list[FakePublisher] | None = None
    answer: Behaviour = field(default_factory=lambda: plain(ANSWER))
    server: Server | None = None
    router: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    redis: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def chaos_place(
    scale: Scale, canary: Canary, options: Options | None = None
) -> AsyncIterator[ChaosPlace]:
    """Run everything until the context ends; begin with all that is cached known."""
    wanted = options or Options()
    async with AsyncExitStack() as stack:
        server = wanted.server or stack.enter_context(own_redis())
        redis = await stack.enter_async_context(fault_proxy("127.0.0.1", server.port))
        engines = [
            await _engine(stack, number, wanted)
            for number in range(wanted.engines or scale.engines)
        ]
        fleet = BlockFleet(list(engines), 1)
        sources, wires = [], []
        for engine in engines:
            ends = [engine.publisher.events, engine.publisher.replay]
            for end in range(2) if wanted.wires else ():
                port = int(ends[end].rsplit(":", 1)[1])
                wires.append(await stack.enter_async_context(fault_proxy("127.0.0.1", port)))
                ends[end] = f"tcp://{wires[-1].address}"
            sources.append(ends)
        settings = _settings(redis, engines, sources, wanted)
        index = BlockIndex.connect(server.url, limit_s=wanted.lookup_s)
        stack.push_async_callback(index.aclose)
        builder = PromptBuilder.load(settings.models[0])
        indexer = await stack.enter_async_context(indexing(settings))
        running = await stack.enter_async_context(router(settings))
        session = aiohttp.ClientSession(f"http://127.0.0.1:{running.port}")
        await stack.enter_async_context(session)
        await until(lambda: running.readiness() is None)
        place = ChaosPlace(
            scale, canary, fleet, engines, server, redis, wires, settings, builder, index,
            session, indexer, running,
        )  # fmt: skip
        for number, engine in enumerate(engines):
            await engine.cache_chat(canary.text, builder, number)
            await engine.step()
        await place.settled()
        yield place
        await place.leave()


@contextmanager
def own_redis(*options: str, binary: Path | None = None) -> Iterator[Server]:
    """Run a Redis of one's own until the context ends."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        server = Server(Path(folder), [*plain_options(), *options])
        if binary is not None:
            server.binary = binary
        with run_servers([server]):
            yield server


async def _engine(stack: AsyncExitStack, number: int, wanted: Options) -> ChaosEngine:
    made = await stack.enter_async_context(upstream(wanted.answer))
    made.metrics = PAGE
    if wanted.publishers is not None:
        publisher = wanted.publishers[number]
    else:
        publisher = await stack.enter_async_context(FakePublisher())
    name = EndpointName(f"127.0.0.1:{made.port}")
    return ChaosEngine(name, publisher, random.Random(number), upstream=made)


def _settings(
    redis: FaultProxy,
    engines: Iterable[ChaosEngine],
    sources: Iterable[list[str]],
    wanted: Options,
) -> Settings:
    model = {"name": MODEL, "tokenizer": str(demo_model_path()), "block_size": SIZE}
    return Settings.model_validate(
        {
            "redis": {"url": f"redis://{redis.address}/0", **wanted.redis},
            "models": [model | wanted.model],
            "endpoints": [
                {"url": f"http://{engine.name}", "model": MODEL, "events": events, "replay": replay}
                for engine, (events, replay) in zip(engines, sources, strict=True)
            ],
            "router": {
                "port": 0,
                "admin_port": 0,
                "debug_headers": True,
                "lookup_s": wanted.lookup_s,
                **wanted.router,
            },
            "indexer": {"admin_port": 0},
        }
    )

"""The indexer's composition root: events in, index out, until told to stop."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from typing import Final

import zmq.asyncio

from kvatlas.common import limits
from kvatlas.common.admin import admin_app, serving
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.keyspace import Shard, shards_of
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.redis_client import LOGIN_REASONS, RedisArg
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor, run_service
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.discovery import Source, configured_sources
from kvatlas.indexer.feed import Feed
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.store import IndexStore, Target
from kvatlas.indexer.store_watch import StoreWatch
from kvatlas.indexer.subscriber import Subscriber
from kvatlas.indexer.sweep import sweep_for_ever

_LOG = logger("indexer")

TICK_S: Final = 0.1
WATCH_S: Final = 1.0
PHASES: Final = ("connecting", "replaying", "live", "waiting", "stale")
NOT_REACHED: Final = "Redis is not reached"
FOREIGN: Final = "Redis holds a key of ours that is of another type"
REFUSED: Final = "Redis refuses the user, the password or a command"
SOCKETS_LEAST: Final = 64
SOCKETS_PER_ENDPOINT: Final = 4
"""Events, both ends of their monitor, and a replay."""
FILES_PER_SOCKET: Final = 2
FILES_ELSE: Final = 256
"""Redis, the admin port, logs."""


def run(settings: Settings) -> int:
    """Run the indexer until SIGTERM or SIGINT; return the exit status."""
    configure_logs(settings.log.level, json=settings.log.json_lines)
    return run_service(lambda stop: Indexer(settings).serve(stop))


class Indexer:
    """Everything that an indexer process owns."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models = {model.model: model.index_shards for model in settings.models}
        self.metrics = IndexerMetrics()
        self._shards = [
            shard for model, count in self._models.items() for shard in shards_of(model, count)
        ]
        self._store = IndexStore.connect(settings.redis)
        self._store_watch = StoreWatch(self._store, self.metrics)
        sources = configured_sources(settings)
        self._context = _context_for(len(sources))
        self._replay_slots = asyncio.Semaphore(limits.REPLAYS_AT_ONCE_MAX)
        self.feeds: list[Feed] = []
        self._subscribers: list[Subscriber] = []
        self._fault: str | None = NOT_REACHED
        self._lives: dict[Shard, str] = {}
        self._was_reached = False
        for source in sources:
            self._add(source)

    async def serve(self, stop: asyncio.Event) -> None:
        """Follow all endpoints until `stop` is set."""
        admin = self._settings.indexer
        app = admin_app(self.metrics.registry, lambda: self._fault)
        try:
            async with serving(app, admin.admin_host, admin.admin_port), Supervisor() as tasks:
                self._start(tasks)
                _LOG.info("indexer.started", endpoints=len(self.feeds), models=len(self._models))
                await stop.wait()
        finally:
            self._context.destroy(linger=0)
            await self._store.aclose()
        _LOG.info("indexer.stopped")

    def _add(self, source: Source) -> None:
        endpoint = source.endpoint
        mirror = Mirror(
            Target(endpoint.name, source.shard),
            EndpointCache(endpoint.model),
            self._store,
            self.metrics,
        )
        feed = Feed(
            mirror,
            self.metrics,
            has_replay=source.replay is not None,
            block_size=source.block_size,
        )
        self.feeds.append(feed)
        self._subscribers.append(Subscriber(self._context, source, feed, self._replay_slots))

    def _start(self, tasks: Supervisor) -> None:
        tasks.start(self._watch_redis(), "watch")
        tasks.start(self._tick(), "tick")
        tasks.start(self._talk(), "talk")
        for feed, subscriber in zip(self.feeds, self._subscribers, strict=True):
            tasks.start(feed.mirror.run(), f"mirror {feed.name}")
            tasks.start(subscriber.run(), f"subscriber {feed.name}")
        for model, shards in self._models.items():
            for shard in shards_of(model, shards):
                tasks.start(sweep_for_ever(self._store, shard, self.metrics), f"sweep {shard.base}")

    async def _tick(self) -> None:
        while True:
            for subscriber in self._subscribers:
                subscriber.tick()
            phases = Counter(feed.phase for feed in self.feeds)
            for phase in PHASES:
                self.metrics.endpoints.labels(phase).set(phases[phase])
            await asyncio.sleep(TICK_S)

    async def _watch_redis(self) -> None:
        """Enter the models, and notice a Redis that is away or has begun a new life."""
        while True:
            try:
                await self._store.prepare(self._models)
                await self._check_lives()
                await self._store_watch.look(self._shards, [feed.mirror for feed in self.feeds])
                self._was_reached = True
                self._set_fault(self._refusal())
            except IndexUnavailable as error:
                self.metrics.store_errors.labels(error.reason).inc()
                refused = error.reason in LOGIN_REASONS
                if refused and not self._was_reached:
                    raise ConfigError([f"redis: {REFUSED} ({error.reason})"]) from error
                self._set_fault(_fault_of({error.reason}) or NOT_REACHED)
            await asyncio.sleep(WATCH_S)

    async def _check_lives(self) -> None:
        """Let mirrors look where Redis stands when another server, or another life, serves them."""
        lives = await self._store.lives(self._shards)
        changed = {shard for shard, life in lives.items() if life != self._lives.get(shard)}
        for feed in self.feeds:
            if feed.mirror.target.shard in changed:
                feed.mirror.check()
        if changed:
            await self._retire_unknown()
        self._lives = lives

    def _refusal(self) -> str | None:
        """Say whether Redis refuses what endpoints need, though it answers."""
        return _fault_of({feed.mirror.failing for feed in self.feeds})

    async def _talk(self) -> None:
        """Take the routers' notes of doubt, and tell how the indexer stands with endpoints."""
        told: dict[Target, dict[str, RedisArg]] = {}
        told_at = float("-inf")
        while True:
            now = monotonic()
            try:
                due = now - told_at >= limits.AUDIT_S
                await self._tell(told, due=due)
                told_at = now if due else told_at
                await self._take_doubts()
            except IndexUnavailable as error:
                self.metrics.store_errors.labels(error.reason).inc()
            await asyncio.sleep(WATCH_S)

    async def _take_doubts(self) -> None:
        feeds = {(feed.mirror.target.shard, feed.name): feed for feed in self.feeds}
        for shard in {shard for shard, _ in feeds}:
            for name, epoch in (await self._store.take_doubts(shard)).items():
                feed = feeds.get((shard, name))
                if feed is not None:
                    feed.doubt(epoch)

    async def _tell(self, told: dict[Target, dict[str, RedisArg]], *, due: bool) -> None:
        """Write the stand of endpoints where it has changed, and of all when it is due."""
        stands = []
        for feed in self.feeds:
            target, stand = feed.mirror.target, feed.stand()
            if feed.mirror.epoch is not None and (due or told.get(target) != stand):
                stands.append((target, {**stand, "followed": f"{time.time():.3f}"}))
                told[target] = stand
        if stands:
            await self._store.tell(stands)

    async def _retire_unknown(self) -> None:
        """Forget the endpoints that the configuration no longer names."""
        for model, shards in self._models.items():
            for shard in shards_of(model, shards):
                own = {f.name for f in self.feeds if f.mirror.target.shard == shard}
                for name in await self._store.known_endpoints(shard) - own:
                    await self._store.retire(Target(name, shard), time.time())
                    _LOG.info("endpoint.retired", endpoint=name)

    def _set_fault(self, fault: str | None) -> None:
        if fault != self._fault:
            self._fault = fault
            _LOG.info("redis.reached") if fault is None else _LOG.warning("redis.lost", why=fault)


def _fault_of(reasons: AbstractSet[str | None]) -> str | None:
    """Find the fault that only an operator can mend."""
    if reasons & LOGIN_REASONS:
        return REFUSED
    return FOREIGN if "wrongtype" in reasons else None


def _context_for(endpoints: int) -> zmq.asyncio.Context:
    """Make a ZMQ context with room for every endpoint; its default ends at 1,023 sockets."""
    sockets = SOCKETS_LEAST + SOCKETS_PER_ENDPOINT * endpoints
    files = FILES_ELSE + FILES_PER_SOCKET * sockets
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        allowed = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < files:
            _LOG.warning("files.few", allowed=allowed, wanted=files)
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, sockets)
    return context

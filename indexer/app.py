"""The indexer's composition root: events in, index out, until told to stop."""

from __future__ import annotations

import asyncio
import resource
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from itertools import islice
from typing import Final

import zmq.asyncio

from kvatlas.common import limits
from kvatlas.common.admin import admin_app, serving
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.discovery.watching import Watching
from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.ids import EndpointName, IndexerId, ModelName
from kvatlas.common.keyspace import Shard, shards_of
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.redis_client import LOGIN_REASONS, RedisArg, ServerFacts
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor, run_service
from kvatlas.common.tls import Credentials, TlsGauges, listen_credentials, port_context, watch
from kvatlas.indexer.chores import Chores
from kvatlas.indexer.discovery import sources_of
from kvatlas.indexer.feed import Feed
from kvatlas.indexer.following import Means
from kvatlas.indexer.leases import Leases
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.own_gauges import OwnGauges
from kvatlas.indexer.ownership import Ownership
from kvatlas.indexer.scraping import Scraping
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.store_watch import StoreWatch
from kvatlas.indexer.targets import Target
from kvatlas.indexer.turns import Turns

_LOG = logger("indexer")

Reload = Callable[[], Settings | None]
"""Reads the configuration again; None where it is the same as before."""

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


def run(settings: Settings, reload: Reload | None = None) -> int:
    """Run the indexer until SIGTERM or SIGINT; return the exit status."""
    log = configure_logs(settings.log.level, json=settings.log.json_lines)

    async def main(stop: asyncio.Event) -> None:
        indexer = Indexer(settings, reload)
        indexer.metrics.log_dropped.set_function(lambda: log.dropped)
        await indexer.serve(stop)

    return run_service(main)


class Indexer:
    """Everything that an indexer process owns.

    Args:
        settings: the configuration.
        reload: reads the configuration again, None where it has no file; ConfigError where it
            cannot be used.

    Raises:
        ConfigError: files that the configuration names cannot be used.
    """

    def __init__(self, settings: Settings, reload: Reload | None = None) -> None:
        self._settings = settings
        self._reload = reload
        self._watching: Watching | None = None
        self._followed = ExitStack()
        self.metrics = IndexerMetrics()
        gauges = TlsGauges(self.metrics.tls_good, self.metrics.tls_not_after)
        self._admin_tls = listen_credentials(
            "indexer.admin_tls", settings.indexer.admin_tls, gauges
        )
        self._store = IndexStore.connect(settings.redis)
        self._store_watch = StoreWatch(self._store, self.metrics)
        self._own_gauges = OwnGauges(self._store.client)
        self._context = _context()
        slots = asyncio.Semaphore(limits.REPLAYS_AT_ONCE_MAX)
        means = Means(self._context, self._store, self.metrics, slots, Turns())
        lease_s = settings.indexer.lease_s
        me = IndexerId(f"{socket.gethostname()}-{secrets.token_hex(4)}")
        leases = Leases(self._store.client, me, round(lease_s * 1_000))
        self.ownership = Ownership(me, leases, lease_s, means)
        self._scraping = Scraping.connect(settings.redis, self.ownership, self.metrics)
        try:
            self._configure(settings)
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self._fault: str | None = NOT_REACHED
        self._lives: dict[Shard, tuple[str, str]] = {}
        self._prepared = asyncio.Event()

    @property
    def feeds(self) -> list[Feed]:
        """List the feeds of the endpoints that are ours."""
        return [following.feed for following in self.ownership.followings.values()]

    async def serve(self, stop: asyncio.Event) -> None:
        """Follow endpoints until `stop` is set, then give them back."""
        admin = self._settings.indexer
        app = admin_app(self.metrics.registry, lambda: self._fault)
        try:
            async with (
                serving(app, admin.admin_host, admin.admin_port, port_context(self._admin_tls)),
                Supervisor() as tasks,
            ):
                self._start(tasks)
                _LOG.info("indexer.started", indexer=self.ownership.me, models=len(self._models))
                await stop.wait()
                self._followed.close()
                await self.ownership.leave()
        finally:
            self._context.destroy(linger=0)
            await self._scraping.aclose()
            await self._store.aclose()
        _LOG.info("indexer.stopped")

    def _configure(self, settings: Settings) -> None:
        self._scraping.configure(settings)
        self._settings = settings
        self._models = {model.model: model.index_shards for model in settings.models}
        if self._watching is None:
            self._take(Fleet(settings.endpoints, is_known=not settings.discovery))
        else:
            self._follow(self._watching)

    def _follow(self, watching: Watching) -> None:
        """Follow what the configuration in force finds, instead of what one before it did."""
        before, self._followed = self._followed, ExitStack()
        following = self._followed.enter_context(
            watching.following(self._settings, self._scraping.tls_of, self._take)
        )
        # Places that both name go on.
        before.close()
        self._take(following.fleet)

    def _take(self, fleet: Fleet) -> None:
        """Take over who is there."""
        self._scraping.follow(fleet)
        sources = sources_of(self._settings, fleet.endpoints)
        self.ownership.configure(sources, self._shards(), fleet)

    def _credentials(self) -> list[Credentials]:
        admin = [] if self._admin_tls is None else [self._admin_tls]
        return [*admin, *self._scraping.credentials()]

    def _shards(self) -> list[Shard]:
        return [shard for model, count in self._models.items() for shard in shards_of(model, count)]

    def _start(self, tasks: Supervisor) -> None:
        self._watching = Watching(tasks, SourceGauges(self.metrics))
        if self._settings.discovery:
            self._follow(self._watching)
        tasks.start(self._watch_redis(), "watch")
        tasks.start(self.ownership.run(tasks, self._prepared), "ownership")
        tasks.start(self._scraping.run(tasks, self._prepared), "scraping")
        tasks.start(watch(self._credentials), "tls")
        tasks.start(self._tick(), "tick")
        tasks.start(self._talk(), "talk")
        tasks.start(Chores(self.ownership, self._store, self.metrics, self._shards).run(), "chores")
        if self._reload is not None:
            tasks.start(self._watch_configuration(self._reload), "configuration")

    async def _tick(self) -> None:
        while True:
            now = monotonic()
            followings = list(self.ownership.followings.values())
            for following in followings:
                following.subscriber.tick()
                following.mirror.tick(now)
            phases = Counter(following.feed.phase for following in followings)
            for phase in PHASES:
                self.metrics.endpoints.labels(phase).set(phases[phase])
            await asyncio.sleep(TICK_S)

    async def _watch_configuration(self, reload: Reload) -> None:
        """Follow the endpoints of a configuration that changes."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                settings = await asyncio.to_thread(reload)
                if settings is not None:
                    self._configure(settings)
            except ConfigError as error:
                _LOG.error("config.refused", faults=error.faults)
                continue
            if settings is not None:
                _LOG.info("config.reloaded", endpoints=len(settings.endpoints))

    async def _watch_redis(self) -> None:
        """Enter the models, and notice a Redis that is away or has begun a new life."""
        while True:
            try:
                await self._store.prepare(self._models)
                servers = await self._store.servers(self._shards())
                self._check_lives(servers)
                await self._store_watch.look(servers, [feed.mirror for feed in self.feeds])
                self._prepared.set()
                self._set_fault(self._refusal())
            except IndexUnavailable as error:
                self.metrics.store_errors.labels(error.reason).inc()
                refused = error.reason in LOGIN_REASONS
                if refused and not self._prepared.is_set():
                    raise ConfigError([f"redis: {REFUSED} ({error.reason})"]) from error
                self._set_fault(_fault_of({error.reason}) or NOT_REACHED)
            await asyncio.sleep(WATCH_S)

    def _check_lives(self, servers: Mapping[Shard, ServerFacts]) -> None:
        """Let mirrors look where Redis stands when another server, or another life, serves them."""
        lives = {shard: facts.life for shard, facts in servers.items()}
        changed = {shard for shard, life in lives.items() if life != self._lives.get(shard)}
        for feed in self.feeds:
            if feed.mirror.target.shard in changed:
                feed.mirror.check()
        self._lives = lives

    def _refusal(self) -> str | None:
        """Say whether Redis refuses what endpoints need, though it answers."""
        reasons = {feed.mirror.failing for feed in self.feeds}
        return _fault_of({*reasons, self.ownership.failing})

    async def _talk(self) -> None:
        """Take the routers' notes of doubt, and tell how the indexer stands with endpoints."""
        told: dict[Target, dict[str, RedisArg]] = {}
        told_at = float("-inf")
        while True:
            now = monotonic()
            for feed in self.feeds:
                feed.measure()
            try:
                due = now - told_at >= limits.AUDIT_S
                told = await self._tell({} if due else told)
                told_at = now if due else told_at
                await self._take_doubts()
                await self._take_gauges()
            except IndexUnavailable as error:
                self.metrics.store_errors.labels(error.reason).inc()
            await asyncio.sleep(WATCH_S)

    async def _take_doubts(self) -> None:
        by_shard: dict[Shard, dict[EndpointName, Feed]] = {}
        for feed in self.feeds:
            by_shard.setdefault(feed.mirror.target.shard, {})[feed.name] = feed
        for shard, feeds in by_shard.items():
            for name, epoch in (await self._store.take_doubts(shard, feeds)).items():
                feeds[name].doubt(epoch)

    async def _take_gauges(self) -> None:
        """Let feeds hear how large their engines' caches are."""
        if not self._settings.indexer.bound_by_gpu_blocks:
            return
        by_model: dict[ModelName, dict[EndpointName, Feed]] = {}
        for feed in self.feeds:
            by_model.setdefault(feed.mirror.target.shard.model, {})[feed.name] = feed
        for model, feeds in by_model.items():
            told = {name: each async for name, each in self._own_gauges.read(model, list(feeds))}
            for name, feed in feeds.items():
                feed.told(told.get(name), monotonic())

    async def _tell(
        self, told: dict[Target, dict[str, RedisArg]]
    ) -> dict[Target, dict[str, RedisArg]]:
        """Write the stand of endpoints where it is another than was told."""
        stands = {
            feed.mirror.target: feed.stand() for feed in self.feeds if feed.mirror.epoch is not None
        }
        now_s = time.time()
        lags = {feed.mirror.target: feed.mirror.lag_s for feed in self.feeds}
        more = {"followed": f"{now_s:.3f}"}
        news = (each for each in stands.items() if told.get(each[0]) != each[1])
        while some := list(islice(news, limits.TOLD_AT_ONCE_MAX)):
            await asyncio.gather(
                *(
                    self._store.tell(target, {**stand, **more, "lag": f"{lags[target]:.3f}"})
                    for target, stand in some
                )
            )
        return stands

    def _set_fault(self, fault: str | None) -> None:
        if fault != self._fault:
            self._fault = fault
            _LOG.info("redis.reached") if fault is None else _LOG.warning("redis.lost", why=fault)


def _fault_of(reasons: AbstractSet[str | None]) -> str | None:
    """Find the fault that only an operator can mend."""
    if reasons & LOGIN_REASONS:
        return REFUSED
    return FOREIGN if "wrongtype" in reasons else None


def _context() -> zmq.asyncio.Context:
    """Make a ZMQ context with room for every endpoint; its default ends at 1,023 sockets."""
    sockets = SOCKETS_LEAST + SOCKETS_PER_ENDPOINT * limits.ENDPOINTS_MAX
    files = FILES_ELSE + FILES_PER_SOCKET * sockets
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        allowed = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < files:
            _LOG.info("files.few", allowed=allowed, for_all_endpoints=files)
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, sockets)
    return context

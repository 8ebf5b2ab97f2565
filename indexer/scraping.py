"""Look at engines' gauges, once for the whole fleet, and share what was seen.

An engine is looked at by the indexer that follows its rank 0; one without events by the one that
all who are alive agree on. So when an owner dies nobody looks until its leases are over; routers
notice, and look themselves meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Final

import aiohttp

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.engine_look import look
from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.log import logger
from kvatlas.common.redis_client import connect
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.common.settings import EndpointSettings, RedisSettings, Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.common.tls import Credentials, TlsGauges
from kvatlas.common.tls_engines import PLAIN, EngineIdentities, EngineTls
from kvatlas.indexer.gauge_writer import GaugeWriter, Seen
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.ownership import Ownership
from kvatlas.indexer.pace import Pace

_LOG = logger("scraping")

SHARE_S: Final = 0.25
"""Between two looks at which engines are ours, and two attempts to reach Redis."""
TICK_S: Final = 0.01
"""In which so many looks are begun that SCRAPES_PER_S_MAX is kept, and never many at once."""


@dataclass(slots=True, eq=False)
class _Engine:
    """One address, and how far it is looked at.

    Attributes:
        key: that it asks for.
        tls: how it is spoken to.
        due_s: when it is to be looked at next.
        is_ours: whether it is ours to look at.
        is_silent: whether the last look found nothing.
    """

    settings: EndpointSettings
    model: ModelName
    key: str | None
    tls: EngineTls
    pace: Pace
    due_s: float = 0.0
    is_ours: bool = False
    is_looked_at: bool = False
    is_silent: bool = False


@dataclass(slots=True, eq=False)
class _Board:
    """The shared gauges of one model.

    Attributes:
        seen: what is to be written.
        is_reached: whether the last write succeeded; nothing is looked at for a Redis that is away.
        tried_s: when the last write began.
    """

    writer: GaugeWriter
    seen: dict[EndpointName, Seen] = field(default_factory=dict)
    is_reached: bool = True
    is_writing: bool = False
    tried_s: float = float("-inf")

    def has_to_write(self, now_s: float) -> bool:
        """Tell whether it is time to write, or to see whether Redis is back."""
        pause_s = limits.GAUGES_WRITE_S if self.is_reached else SHARE_S
        is_needed = bool(self.seen) or not self.is_reached
        return is_needed and not self.is_writing and now_s - self.tried_s >= pause_s


class Scraping:
    """Look at the engines that are ours to look at.

    Args:
        client: shares one connection to each server.
        ownership: tells which these are.
        metrics: of the process.
    """

    def __init__(
        self,
        client: OneRedis | RoutedRedis,
        ownership: Ownership,
        metrics: IndexerMetrics,
    ) -> None:
        self._client = client
        self._ownership = ownership
        self._metrics = metrics
        self._gauges = TlsGauges(metrics.tls_good, metrics.tls_not_after)
        self._identities: EngineIdentities | None = None
        self._settings: Settings
        self._fleet = Fleet([])
        self._engines: dict[str, _Engine] = {}
        self._boards: dict[ModelName, _Board] = {}
        self._due: list[tuple[float, int, _Engine]] = []
        """A heap of when engines are to be looked at, with numbers that make entries differ."""
        self._numbers = count()
        self._ours = 0
        self._slots = asyncio.Semaphore(limits.SCRAPES_AT_ONCE_MAX)
        self._slots_of_silent = asyncio.Semaphore(limits.SCRAPES_OF_SILENT_MAX)

    @classmethod
    def connect(
        cls, redis: RedisSettings, ownership: Ownership, metrics: IndexerMetrics
    ) -> Scraping:
        """Make one with a connection of its own; nothing is sent yet."""
        client = connect(redis, timeout_s=limits.REDIS_WRITE_S, connections_max=None)
        return cls(client, ownership, metrics)

    async def aclose(self) -> None:
        """Close the connection to Redis."""
        await self._client.aclose()

    def configure(self, settings: Settings) -> None:
        """Say how engines are spoken to; `follow` says which there are.

        Raises:
            ConfigError: what they are to be spoken to with cannot be used; all is as before.
        """
        identities = EngineIdentities(settings, self._gauges)
        if self._identities is not None:
            self._identities.give_way(identities)
        self._identities, self._settings = identities, settings

    def tls_of(self, url: str) -> EngineTls:
        """Tell how an engine is spoken to."""
        return PLAIN if self._identities is None else self._identities.of(url)

    def follow(self, fleet: Fleet) -> None:
        """Say which engines there are."""
        self._fleet = fleet
        before, self._engines = self._engines, {}
        for known in before.values():
            # Until the next look at what is ours; who is not there any more stays so.
            known.is_ours = False
        for each in fleet.endpoints:
            old, tls = before.get(each.url), self.tls_of(each.url)
            if old is not None and old.settings == each:
                old.tls = tls
                self._engines[each.url] = old
                continue
            try:
                key = read_key(each.api_key_file, "endpoints")
            except ConfigError:
                # The index needs no key; routers that have it look at the engine themselves.
                _LOG.error("endpoint.key_unreadable", endpoint=each.host_port)
                continue
            model = self._settings.model_named(each.model).model
            pace = Pace(self._settings.indexer.metrics_interval_s)
            self._engines[each.url] = _Engine(each, model, key, tls, pace)
        models = {engine.model for engine in self._engines.values()}
        self._boards = {
            model: self._boards.get(model) or _Board(GaugeWriter(self._client, LoadKeys(model)))
            for model in models
        }

    def credentials(self) -> Sequence[Credentials]:
        """List whose files are to be watched."""
        return () if self._identities is None else self._identities.credentials()

    async def run(self, tasks: Supervisor, ready: asyncio.Event) -> None:
        """Look, write and tidy up, for ever. Faults of Redis are waited out.

        Args:
            tasks: what looks and writes runs in.
            ready: set when Redis may be written.
        """
        await ready.wait()
        shared_s = forgot_s = float("-inf")
        async with _session() as session:
            while True:
                now_s = monotonic()
                if now_s - shared_s >= SHARE_S:
                    self._share(now_s)
                    shared_s = now_s
                for engine in self._next(now_s):
                    tasks.start(self._look(session, engine), "look")
                for board in self._boards.values():
                    if board.has_to_write(now_s):
                        board.is_writing, board.tried_s = True, now_s
                        tasks.start(self._write(board), "write gauges")
                if now_s - forgot_s >= limits.GAUGES_FORGET_S:
                    forgot_s = now_s
                    tasks.start(self._forget(), "forget gauges")
                await asyncio.sleep(TICK_S)

    def _share(self, now_s: float) -> None:
        """Queue the engines that have become ours; those that are no longer are left out later."""
        self._ours = 0
        for engine in self._engines.values():
            was_ours = engine.is_ours
            engine.is_ours = self._boards[engine.model].is_reached and self._is_mine(engine)
            self._ours += engine.is_ours
            if engine.is_ours and not was_ours and not engine.is_looked_at:
                self._queue(engine, now_s)
        self._metrics.scraped.set(self._ours)

    def _queue(self, engine: _Engine, due_s: float) -> None:
        engine.due_s = due_s
        heappush(self._due, (due_s, next(self._numbers), engine))

    def _next(self, now_s: float) -> Iterator[_Engine]:
        """Give the engines that are due, the longest due first, as many as one tick may."""
        room = limits.SCRAPES_PER_S_MAX * TICK_S
        while room > 0 and self._due and self._due[0][0] <= now_s:
            due_s, _, engine = heappop(self._due)
            # It may have been given away, and taken again, since it was queued.
            if engine.is_ours and engine.due_s == due_s and not engine.is_looked_at:
                engine.is_looked_at = True
                room -= 1
                yield engine

    def _is_mine(self, engine: _Engine) -> bool:
        if engine.settings.events:
            return engine.settings.names()[0] in self._ownership.followings
        return self._ownership.does(f"look {engine.settings.url}")

    async def _look(self, session: aiohttp.ClientSession, engine: _Engine) -> None:
        async with self._slots_of_silent if engine.is_silent else self._slots:
            found = await look(session, engine.settings.url, engine.key, engine.tls)
        self._metrics.scrapes.labels(found.outcome).inc()
        engine.is_silent, engine.is_looked_at = not found.is_up, False
        engine.pace.note(found, self._ours / limits.SCRAPES_PER_S_MAX)
        if not engine.is_ours:
            return
        board = self._boards[engine.model]
        for rank, name in enumerate(engine.settings.names() if found.is_asked else ()):
            board.seen[name] = Seen(found.sample(rank), found.at_s, engine.pace.pause_s)
        # Spread, so that engines that begin together are not looked at together for ever.
        pause_s = engine.pace.pause_s * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
        self._queue(engine, monotonic() + pause_s)

    async def _write(self, board: _Board) -> None:
        seen, board.seen = board.seen, {}
        try:
            await board.writer.write(seen)
            board.is_reached = True
        except IndexUnavailable as error:
            board.is_reached = False
            self._metrics.store_errors.labels(error.reason).inc()
        finally:
            board.is_writing = False

    async def _forget(self) -> None:
        if not self._fleet.is_known:
            return
        names: dict[ModelName, set[EndpointName]] = {}
        for engine in self._engines.values():
            names.setdefault(engine.model, set()).update(engine.settings.names())
        awaited = {EndpointName(host_port) for host_port in self._fleet.awaited}
        for model, board in list(self._boards.items()):
            if self._ownership.does(LoadKeys(model).gauges):
                with suppress(IndexUnavailable):
                    await board.writer.forget(names.get(model, set()) | awaited)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=limits.SCRAPE_KEEPALIVE_S, ttl_dns_cache=10
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        max_line_size=limits.HEADERS_BYTES_MAX,
        max_field_size=limits.HEADERS_BYTES_MAX,
    )

"""All that one configuration makes: requests in, the best endpoint out.

A configuration that changes makes another core beside it, which takes the requests that come from
then on; the former one ends when its last request has (`cores`).
"""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery.watching import Following, Watching
from kvatlas.common.discovery_settings import PoolDiscovery
from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import LoadKeys, shards_of
from kvatlas.common.kube.rules_watch import RulesWatch
from kvatlas.common.kube.watch import api_of
from kvatlas.common.prompt.probe_set import probe_set
from kvatlas.common.redis_client import connect
from kvatlas.common.settings import RouterSettings, Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.common.tls import TlsGauges, watch
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.access import Access
from kvatlas.router.admission import Admission
from kvatlas.router.desk import Desk, Handled
from kvatlas.router.doubts import Doubts
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.engine_pool import EnginePool
from kvatlas.router.flight_log import FlightLog
from kvatlas.router.flight_logs import FlightLogs, boards_of
from kvatlas.router.flight_stream import Clients
from kvatlas.router.flights import Board
from kvatlas.router.handover_check import HandoverChecks
from kvatlas.router.http import RouterHttp
from kvatlas.router.idle_probe import IdleProbes
from kvatlas.router.looks import Looks
from kvatlas.router.lookup import BlockIndex
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.pipeline import Pipeline, Stages
from kvatlas.router.probe import Prober
from kvatlas.router.prompts import Prompts
from kvatlas.router.proof import Parts, Proof
from kvatlas.router.proxy import Proxy
from kvatlas.router.rates import RateLimits
from kvatlas.router.relearning import Relearning
from kvatlas.router.render_service import RenderServices
from kvatlas.router.salts import Salts
from kvatlas.router.schema import SchemaWatch
from kvatlas.router.shared_gauges import SharedGauges
from kvatlas.router.tracing import Tracer


@dataclass(slots=True, eq=False)
class Core:
    """A core that runs.

    Attributes:
        access: who may come; None where everybody may.
        desk: where requests are taken in and decided on.
        http: that proxies them.
        identities: how engines are spoken to.
        found: who is there, as far as that is found out.
        rules: what is ruled for the pools that are watched.
        is_retired: set when requests go to another one.
    """

    settings: Settings
    desk: Desk
    http: RouterHttp
    endpoints: Endpoints
    prober: Prober
    prompts: Prompts
    access: Access | None
    identities: EngineIdentities
    found: Following
    rules: RulesWatch
    started_s: float = field(default_factory=monotonic)
    is_retired: asyncio.Event = field(default_factory=asyncio.Event)
    _has_looked: bool = False

    def readiness(self) -> str | None:
        """Say why not ready.

        Neither Redis nor engines that are away are reasons: without the one requests go by load,
        without the others clients are told so, and both come back without our doing. Nor are
        endpoints that are found later on.
        """
        is_young = monotonic() - self.started_s < self.settings.router.probe_wait_s
        if is_young and not self.found.fleet.is_known:
            return "discovery has not told its endpoints yet"
        endpoints = list(self.endpoints.all())
        if not endpoints and not self.settings.discovery:
            return "no endpoint is configured"
        self._has_looked = self._has_looked or all(endpoint.asked for endpoint in endpoints)
        if not self._has_looked:
            return "not every endpoint has been looked at"
        if is_young and not self.rules.is_known():
            return "what is ruled for the pools has not been listed"
        if is_young and not self.prober.is_settled():
            return "not every engine has been asked for its models and token ids"
        return None


@dataclass(frozen=True, slots=True)
class Shared:
    """What cores use together.

    Attributes:
        pool: of connections to engines.
        session: to ask engines with.
        watching: finds endpoints beside those that are configured.
        is_picker: whether gateways ask, and move the bytes.
    """

    metrics: RouterMetrics
    admission: Admission
    pool: EnginePool
    session: aiohttp.ClientSession
    watching: Watching
    is_picker: bool = False


@dataclass(frozen=True, slots=True)
class _Redis:
    """What requests need Redis for.

    Attributes:
        index: who holds what.
        flights: what is under way.
        rates: what tenants have used.
    """

    index: BlockIndex
    flights: FlightLogs
    rates: RateLimits


@asynccontextmanager
async def core(settings: Settings, prompts: Prompts, shared: Shared) -> AsyncIterator[Core]:
    """Run a core until the context ends.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    async with AsyncExitStack() as stack:
        stack.callback(prompts.close)
        metrics, session, options = shared.metrics, shared.session, settings.router
        access = Access.of(options.api_keys_file, metrics)
        boards = boards_of(settings)
        identities = EngineIdentities(settings, TlsGauges(metrics.tls_good, metrics.tls_not_after))
        may_assume = shared.is_picker and settings.picker.unknown_models == "by-engine"
        endpoints = Endpoints(settings, metrics, boards, identities, assumes_adapters=may_assume)
        stack.callback(endpoints.close)
        found = stack.enter_context(
            shared.watching.following(
                settings, identities.of, lambda fleet: endpoints.follow(fleet.endpoints)
            )
        )
        redis = _redis(settings, boards, metrics, stack)
        renders = RenderServices(settings.models, session, metrics, identities)
        stages = Stages(prompts, renders, redis.index, redis.flights)
        pipeline = Pipeline(settings, stages, endpoints, metrics)
        parts = _parts(settings, redis.index, shared, stack)
        rules = RulesWatch(api_of(settings.kubernetes, metrics), _pools(settings))
        handled = Handled(
            pipeline,
            Proof(settings, parts, metrics),
            redis.rates,
            shared.admission,
            _salts(options),
            rules.ruled,
            _tracer(options, metrics, stack),
        )
        desk = Desk(settings, handled, metrics)
        proxy = Proxy(options, metrics, shared.pool, endpoints.health)
        http = RouterHttp(options, desk, proxy, metrics)
        probes = {m.model: probe_set(prompts.builder(m.model), m.name) for m in settings.models}
        prober = Prober(session, endpoints, probes, metrics)
        gauges = _gauges(settings, endpoints, metrics)
        stack.push_async_callback(gauges.aclose)
        looks = Looks(session, endpoints, gauges.is_fresh, metrics, options.metrics_interval_s)
        with suppress(IndexUnavailable):
            await redis.index.warm()
        schema = SchemaWatch(redis.index)
        await schema.look()
        tasks = await stack.enter_async_context(Supervisor())
        for name, work in {
            "flights": redis.flights.run(),
            "gauges": gauges.run(),
            "looks": looks.run(gauges.begun),
            "probes": prober.run(),
            "doubts": parts.doubts.run(),
            "handover_checks": parts.checks.run(),
            "relearning": parts.relearning.run(),
            "rates": redis.rates.run(),
            "schema": schema.run(),
            "tls": watch(identities.credentials),
        }.items():
            tasks.start(work, name)
        if access is not None:
            tasks.start(access.run(), "access")
        if _pools(settings):
            tasks.start(rules.run(), "rules")
        if options.idle_probe_s:
            idle = IdleProbes(session, endpoints, metrics, options.idle_probe_s)
            tasks.start(idle.run(), "idle_probes")
        if settings.discovery:
            tasks.start(endpoints.see_off(), "farewells")
        yield Core(
            settings, desk, http, endpoints, prober, prompts, access, identities, found, rules
        )


def _gauges(settings: Settings, endpoints: Endpoints, metrics: RouterMetrics) -> SharedGauges:
    """Make what reads the gauges of all models that have endpoints, or may be found to."""

    def has_endpoints(model: ModelName) -> bool:
        return bool(endpoints.of(model))

    models = [m.model for m in settings.models if settings.discovery or has_endpoints(m.model)]
    take = endpoints.note_shared
    return SharedGauges.connect(settings.redis, models, has_endpoints, take, metrics)


def _pools(settings: Settings) -> list[PoolDiscovery]:
    return [entry for entry in settings.discovery if isinstance(entry, PoolDiscovery)]


def _redis(
    settings: Settings,
    boards: Mapping[ModelName, Board],
    metrics: RouterMetrics,
    stack: AsyncExitStack,
) -> _Redis:
    limit_s = settings.router.lookup_s
    weights = {model.model: model.tier_weights.by_tier() for model in settings.models}
    index = BlockIndex.connect(settings.redis, weights, limit_s)
    metrics.windows_undecided.set_function(lambda: index.undecided)
    stack.push_async_callback(index.aclose)
    writer = connect(
        settings.redis.for_router_writes(), timeout_s=limits.REDIS_WRITE_S, connections_max=None
    )
    stack.push_async_callback(writer.aclose)
    clients = Clients(index.client, writer, limit_s)
    flights = FlightLogs(
        {m: FlightLog(LoadKeys(m), clients, board, metrics) for m, board in boards.items()}
    )
    stack.push_async_callback(flights.aclose)
    return _Redis(index, flights, RateLimits(writer, limit_s, metrics))


def _parts(settings: Settings, index: BlockIndex, shared: Shared, stack: AsyncExitStack) -> Parts:
    options = settings.router
    doubts = Doubts.connect(settings.redis.for_router_writes(), shared.metrics)
    stack.push_async_callback(doubts.aclose)
    handing_over = [m.model for m in settings.models if m.token_handover]
    checks = HandoverChecks(
        shared.session, options.handover_check_share, handing_over, shared.metrics
    )
    models = settings.models if options.relearn else []
    shards = [shard for m in models for shard in shards_of(m.model, m.index_shards)]
    relearning = Relearning(settings.redis, shards, index.epoch_of)
    stack.push_async_callback(relearning.aclose)
    return Parts(doubts, checks, relearning)


def _tracer(
    settings: RouterSettings, metrics: RouterMetrics, stack: AsyncExitStack
) -> Tracer | None:
    """Make what traces requests where that is asked for.

    Raises:
        ConfigError: the packages for it are missing.
    """
    if settings.trace_url is None:
        return None
    try:
        otel = importlib.import_module("kvatlas.router.otel")
    except ModuleNotFoundError as error:
        fault = f"router.trace_url: {error.name} is missing: pip install 'kvatlas[otel]'"
        raise ConfigError([fault]) from None
    chance = random.Random()  # noqa: S311 - ids of traces guard nothing
    exporter = otel.otlp(settings.trace_url, lambda how, n: metrics.spans_lost.labels(how).inc(n))
    tracer = Tracer(exporter, settings.trace_share, chance)
    stack.push_async_callback(asyncio.to_thread, tracer.close)
    return tracer


def _salts(settings: RouterSettings) -> Salts | None:
    secret = read_key(settings.tenant_salt_file, "router.tenant_salt_file")
    return None if secret is None else Salts(secret)

"""The router's composition root: requests in, the best endpoint out, until told to stop."""

from __future__ import annotations

import asyncio
import gc
import importlib
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Middleware

from kvatlas.common import limits
from kvatlas.common.admin import admin_app, readyz_handler, serving
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError, IndexUnavailable
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import LoadKeys, shards_of
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.prompt.probe_set import probe_set
from kvatlas.common.redis_client import connect
from kvatlas.common.settings import RouterSettings, Settings
from kvatlas.common.tasks import Supervisor, run_service
from kvatlas.common.tls import Credentials, TlsGauges, listen_credentials, listening, watch
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.access import Access
from kvatlas.router.admission import Admission
from kvatlas.router.answers import errors_middleware
from kvatlas.router.doubts import Doubts
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.flight_log import Clients, FlightLog, FlightLogs, boards_of
from kvatlas.router.handover_check import HandoverChecks
from kvatlas.router.http import Handled, RouterHttp
from kvatlas.router.idle_probe import IdleProbes
from kvatlas.router.looks import Looks
from kvatlas.router.lookup import BlockIndex
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.openapi import OPENAPI_PATH, openapi
from kvatlas.router.paths import posted_paths
from kvatlas.router.pipeline import Pipeline, Stages
from kvatlas.router.probe import Prober
from kvatlas.router.prompts import Prompts
from kvatlas.router.proof import Parts, Proof
from kvatlas.router.proxy import Proxy
from kvatlas.router.rates import RateLimits
from kvatlas.router.relearning import Relearning
from kvatlas.router.render_service import RenderServices
from kvatlas.router.salts import Salts
from kvatlas.router.shared_gauges import SharedGauges
from kvatlas.router.tracing import Tracer

_LOG = logger("router")


def run(settings: Settings) -> int:
    """Run the router until SIGTERM or SIGINT; return the exit status."""
    configure_logs(settings.log.level, json=settings.log.json_lines)

    async def main(stop: asyncio.Event) -> None:
        async with router(settings) as running:
            # What was made until here lives as long as the process: to look through it again takes
            # the collector 25 ms each time.
            gc.collect()
            gc.freeze()
            _LOG.info("router.started", port=running.port, admin_port=running.admin_port)
            await stop.wait()
            await running.drain()
        _LOG.info("router.stopped")

    return run_service(main)


@dataclass(slots=True)
class Running:
    """A router that serves, with its real ports."""

    http: RouterHttp
    endpoints: Endpoints
    prober: Prober
    metrics: RouterMetrics
    settings: RouterSettings
    started: float = field(default_factory=monotonic)
    port: int = 0
    admin_port: int = 0
    is_draining: bool = False

    def readiness(self) -> str | None:
        """Say why not ready.

        Neither Redis nor engines that are away are reasons: without the one requests go by load,
        without the others clients are told so, and both come back without our doing.
        """
        if self.is_draining:
            return "draining"
        endpoints = list(self.endpoints.all())
        if not endpoints:
            return "no endpoint is configured"
        if not all(endpoint.asked for endpoint in endpoints):
            return "not every endpoint has been looked at"
        is_young = monotonic() - self.started < self.settings.probe_wait_s
        if is_young and not self.prober.is_settled():
            return "not every engine has been asked for its models and token ids"
        return None

    async def drain(self) -> None:
        """Stop being ready and let open requests finish."""
        self.is_draining = True
        _LOG.info("router.draining", requests=self.http.open_requests)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                await self.http.idle.wait()


@asynccontextmanager
async def router(settings: Settings) -> AsyncIterator[Running]:
    """Serve in this event loop until the context ends.

    Raises:
        ConfigError: a tokenizer cannot be loaded, or an address not be bound.
    """
    async with AsyncExitStack() as stack:
        metrics = RouterMetrics()
        doors = Doors.of(settings.router, metrics)
        boards = boards_of(settings)
        tls = Tls.of(settings, metrics)
        endpoints = Endpoints(settings, metrics, boards, tls.engines)
        prompts = Prompts(settings.models)
        stack.callback(prompts.close)
        weights = {model.model: model.tier_weights.by_tier() for model in settings.models}
        index = BlockIndex.connect(settings.redis, weights, settings.router.lookup_s)
        metrics.windows_undecided.set_function(lambda: index.undecided)
        stack.push_async_callback(index.aclose)
        writer = connect(
            settings.redis.for_router_writes(),
            timeout_s=limits.REDIS_WRITE_S,
            connections_max=None,
        )
        stack.push_async_callback(writer.aclose)
        clients = Clients(index.client, writer, settings.router.lookup_s)
        rates = RateLimits(writer, settings.router.lookup_s, metrics)
        flights = FlightLogs(
            {
                model: FlightLog(LoadKeys(model), clients, board, metrics)
                for model, board in boards.items()
            }
        )
        stack.push_async_callback(flights.aclose)
        proxy = Proxy(settings.router, metrics)
        stack.push_async_callback(proxy.aclose)
        renders = RenderServices(settings.models, proxy.session, metrics, tls.engines)
        pipeline = Pipeline(settings, Stages(prompts, renders, index, flights), endpoints, metrics)
        doubts = Doubts.connect(settings.redis.for_router_writes(), metrics)
        stack.push_async_callback(doubts.aclose)
        checks = HandoverChecks(
            proxy.session,
            settings.router.handover_check_share,
            [m.model for m in settings.models if m.token_handover],
            metrics,
        )
        models = settings.models if settings.router.relearn else []
        shards = [shard for m in models for shard in shards_of(m.model, m.index_shards)]
        relearning = Relearning(settings.redis, shards, index.epoch_of)
        stack.push_async_callback(relearning.aclose)
        proof = Proof(settings, Parts(doubts, checks, relearning), metrics)
        http = RouterHttp(
            settings, Handled(pipeline, proxy, proof, rates, _salts(settings.router)), metrics
        )
        _trace(http, settings.router, stack)
        probes = {m.model: probe_set(prompts.builder(m.model), m.name) for m in settings.models}
        gauges = _shared_gauges(settings, endpoints, metrics)
        stack.push_async_callback(gauges.aclose)
        looks = Looks(
            proxy.session,
            endpoints,
            gauges.is_fresh,
            metrics,
            settings.router.metrics_interval_s,
        )
        prober = Prober(proxy.session, endpoints, probes, metrics)
        running = Running(http, endpoints, prober, metrics, settings.router)
        with suppress(IndexUnavailable):
            await index.warm()
        tasks = await stack.enter_async_context(Supervisor())
        options = settings.router
        for name, work in {
            "flights": flights.run(),
            "gauges": gauges.run(),
            "looks": looks.run(gauges.begun),
            "probes": prober.run(),
            "doubts": doubts.run(),
            "handover_checks": checks.run(),
            "relearning": relearning.run(),
            "rates": rates.run(),
            "tls": watch(tls.credentials),
            **doors.works(),
        }.items():
            tasks.start(work, name)
        if options.idle_probe_s:
            idle = IdleProbes(proxy.session, endpoints, metrics, options.idle_probe_s)
            tasks.start(idle.run(), "idle_probes")
        running.admin_port = await stack.enter_async_context(
            serving(_admin(running), options.admin_host, options.admin_port, listening(tls.admin))
        )
        running.port = await stack.enter_async_context(
            serving(_public(running, doors), options.host, options.port, listening(tls.public))
        )
        yield running


def _shared_gauges(
    settings: Settings, endpoints: Endpoints, metrics: RouterMetrics
) -> SharedGauges:
    counts = {model.model: len(endpoints.of(model.model)) for model in settings.models}
    return SharedGauges.connect(settings.redis, counts, endpoints.note_shared, metrics)


def _trace(http: RouterHttp, settings: RouterSettings, stack: AsyncExitStack) -> None:
    """Trace requests where that is asked for.

    Raises:
        ConfigError: the packages for it are missing.
    """
    if settings.trace_url is None:
        return
    try:
        otel = importlib.import_module("kvatlas.router.otel")
    except ModuleNotFoundError as error:
        fault = f"router.trace_url: {error.name} is missing: pip install 'kvatlas[otel]'"
        raise ConfigError([fault]) from None
    chance = random.Random()  # noqa: S311 - ids of traces guard nothing
    http.tracer = Tracer(otel.otlp(settings.trace_url), settings.trace_share, chance)
    stack.push_async_callback(asyncio.to_thread, http.tracer.close)


def _salts(settings: RouterSettings) -> Salts | None:
    secret = read_key(settings.tenant_salt_file, "router.tenant_salt_file")
    return None if secret is None else Salts(secret)


@dataclass(frozen=True, slots=True)
class Tls:
    """What is shown to clients, to operators and to engines; None where HTTP is spoken."""

    public: Credentials | None
    admin: Credentials | None
    engines: EngineIdentities

    @classmethod
    def of(cls, settings: Settings, metrics: RouterMetrics) -> Self:
        """Make it.

        Raises:
            ConfigError: files cannot be used.
        """
        gauges = TlsGauges(metrics.tls_good, metrics.tls_not_after)
        return cls(
            listen_credentials("router.tls", settings.router.tls, gauges),
            listen_credentials("router.admin_tls", settings.router.admin_tls, gauges),
            EngineIdentities(settings, gauges),
        )

    def credentials(self) -> list[Credentials]:
        """List whose files are watched."""
        ours = [each for each in (self.public, self.admin) if each is not None]
        return [*ours, *self.engines.credentials()]


@dataclass(frozen=True, slots=True)
class Doors:
    """What a request passes before it is handled, the outermost first."""

    access: Access | None
    admission: Admission

    @classmethod
    def of(cls, settings: RouterSettings, metrics: RouterMetrics) -> Self:
        """Make them.

        Raises:
            ConfigError: the file of keys cannot be used.
        """
        return cls(Access.of(settings.api_keys_file, metrics), Admission(settings, metrics))

    def middlewares(self) -> list[Middleware]:
        """List them."""
        return [*([self.access.middleware] if self.access else []), self.admission.middleware]

    def works(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Give what they do beside, by name."""
        works = {"admission": self.admission.run()}
        return works | ({"access": self.access.run()} if self.access else {})


def _public(running: Running, doors: Doors) -> web.Application:
    app = web.Application(
        middlewares=[errors_middleware, *doors.middlewares()],
        client_max_size=running.settings.body_bytes_max,
    )
    for path in posted_paths(running.settings):
        app.router.add_post(path, running.http.generate)
    app.router.add_get("/v1/models", running.http.catalog.models, allow_head=False)
    app.router.add_get("/v1/models/{id:.+}", running.http.catalog.model, allow_head=False)
    app.router.add_get("/readyz", readyz_handler(running.readiness))
    app.router.add_get(OPENAPI_PATH, openapi, allow_head=False)
    return app


def _admin(running: Running) -> web.Application:
    app = admin_app(running.metrics.registry, running.readiness)
    app.middlewares.append(errors_middleware)
    app.router.add_post("/explain", running.http.explain)
    return app

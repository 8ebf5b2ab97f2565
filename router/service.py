"""What router and picker have in common: cores that follow the configuration, and an admin port."""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from kvatlas.common import limits
from kvatlas.common.admin import Readiness, admin_app, serving
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.watching import Watching
from kvatlas.common.engine_client import engine_session
from kvatlas.common.errors import HttpError
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.common.tls import HTTP_1, TlsGauges, listen_credentials, port_context, watch
from kvatlas.common.tls_settings import ListenTls
from kvatlas.router.admission import Admission
from kvatlas.router.answers import error_response
from kvatlas.router.core import Shared
from kvatlas.router.cores import Cores, Reload
from kvatlas.router.engine_pool import EnginePool
from kvatlas.router.metrics import RouterMetrics


@dataclass(slots=True)
class Service:
    """Cores that decide, whoever asks them.

    Attributes:
        tasks: in which they live; one that dies takes the process with it.
        admin_port: the real one.
    """

    cores: Cores
    admission: Admission
    pool: EnginePool
    metrics: RouterMetrics
    tasks: Supervisor
    admin_port: int = 0

    def listen_as(
        self, setting: str, tls: ListenTls | None, alpn: Sequence[str] = HTTP_1
    ) -> ssl.SSLContext | None:
        """Give what a port shows, and follow its files; None where it has none.

        Args:
            setting: whose files they are.
            tls: the files.
            alpn: what is spoken there.

        Raises:
            ConfigError: the files cannot be used.
        """
        gauges = TlsGauges(self.metrics.tls_good, self.metrics.tls_not_after)
        files = listen_credentials(setting, tls, gauges, alpn)
        if files is not None:
            self.tasks.start(watch(lambda: [files]), "tls")
        return port_context(files)


def settle_memory() -> None:
    """Have the collector leave alone what was made until here; it lives as long as the process."""
    # To look through it again takes 25 ms each time.
    gc.collect()
    gc.freeze()
    # Requests under way hold thousands of objects and hardly a cycle: to look for some at every 700
    # took 4 % of the time.
    gc.set_threshold(*limits.GC_THRESHOLDS)


@asynccontextmanager
async def serving_cores(
    settings: Settings, reload: Reload | None, readiness: Readiness, *, is_picker: bool = False
) -> AsyncIterator[Service]:
    """Run cores, and the admin port, until the context ends.

    Args:
        settings: the configuration.
        reload: reads it again; None where it has no file.
        readiness: says why not ready.
        is_picker: whether gateways ask, and move the bytes.

    Raises:
        ConfigError: a tokenizer cannot be loaded, or an address not be bound.
    """
    async with AsyncExitStack() as stack:
        metrics, options = RouterMetrics(), settings.router
        metrics.config_good.set(1)
        session = await stack.enter_async_context(engine_session(options.connect_s))
        pool = EnginePool(options.connect_s)
        stack.callback(pool.close)
        tasks = await stack.enter_async_context(Supervisor())
        admission = Admission(options, metrics)
        watching = Watching(tasks, SourceGauges(metrics))
        cores = Cores(Shared(metrics, admission, pool, session, watching, is_picker), tasks)
        stack.push_async_callback(cores.aclose)
        await cores.start(settings)
        service = Service(cores, admission, pool, metrics, tasks)
        tasks.start(admission.run(), "admission")
        tasks.start(pool.run(), "pool")
        if reload is not None:
            tasks.start(cores.follow(reload, _hangups()), "configuration")
        app = _admin(service, readiness, options.body_bytes_max)
        context = service.listen_as("router.admin_tls", options.admin_tls)
        service.admin_port = await stack.enter_async_context(
            serving(app, options.admin_host, options.admin_port, context)
        )
        yield service


def _hangups() -> asyncio.Event:
    """Give an event that SIGHUP sets."""
    hangup = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    return hangup


def _admin(service: Service, readiness: Readiness, body_bytes_max: int) -> web.Application:
    app = admin_app(service.metrics.registry, readiness, body_bytes_max)

    async def explain(request: web.Request) -> web.Response:
        try:
            asked = await request.read()
            request_id = request.headers.get("x-request-id")
            return web.json_response(await service.cores.current.desk.explain(asked, request_id))
        except HttpError as error:
            told = error_response(error, request.path)
            return web.Response(status=told.status, body=told.body, content_type="application/json")

    app.router.add_post("/explain", explain)
    return app

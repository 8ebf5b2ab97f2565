"""The router's composition root: two ports, one core after the other, until told to stop."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from kvatlas.common import limits
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.settings import RouterSettings, Settings
from kvatlas.common.tasks import run_service
from kvatlas.router.connection import listening
from kvatlas.router.core import Core
from kvatlas.router.cores import Cores, Reload
from kvatlas.router.desk import Desk
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.engine_pool import EnginePool
from kvatlas.router.front import Front
from kvatlas.router.inbound import Inbound
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.probe import Prober
from kvatlas.router.service import Service, serving_cores, settle_memory

_LOG = logger("router")


def run(settings: Settings, reload: Reload | None = None) -> int:
    """Run the router until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: the configuration.
        reload: reads it again; None where it has no file.
    """
    log = configure_logs(settings.log.level, json=settings.log.json_lines)

    async def main(stop: asyncio.Event) -> None:
        async with router(settings, reload) as running:
            running.metrics.log_dropped.set_function(lambda: log.dropped)
            settle_memory()
            _LOG.info("router.started", port=running.port, admin_port=running.admin_port)
            await stop.wait()
            await running.drain()
        _LOG.info("router.stopped")

    return run_service(main)


@dataclass(slots=True)
class Running:
    """A router that serves, with its real ports."""

    service: Service
    front: Front
    inbound: Inbound
    port: int = 0
    is_draining: bool = False

    @property
    def cores(self) -> Cores:
        """Give the cores, of which requests go to one."""
        return self.service.cores

    @property
    def core(self) -> Core:
        """Give the core that requests go to."""
        return self.cores.current

    @property
    def pool(self) -> EnginePool:
        """Give the connections to engines."""
        return self.service.pool

    @property
    def metrics(self) -> RouterMetrics:
        """Give what it counts."""
        return self.service.metrics

    @property
    def admin_port(self) -> int:
        """Give the operators' port."""
        return self.service.admin_port

    @property
    def desk(self) -> Desk:
        """Give where its requests are taken in."""
        return self.core.desk

    @property
    def endpoints(self) -> Endpoints:
        """Give who is there."""
        return self.core.endpoints

    @property
    def prober(self) -> Prober:
        """Give what asks engines for their models and token ids."""
        return self.core.prober

    @property
    def settings(self) -> RouterSettings:
        """Give its configuration."""
        return self.core.settings.router

    def readiness(self) -> str | None:
        """Say why not ready."""
        return "draining" if self.is_draining else self.core.readiness()

    async def drain(self) -> None:
        """Send clients elsewhere, taking what still comes, then let what is open finish.

        What is not done after `drain_s` is left for the end of the context to break off.
        """
        options, inbound = self.settings, self.inbound
        self.is_draining = True
        inbound.send_away()
        _LOG.info("router.draining", requests=self.cores.open_requests)
        await asyncio.sleep(options.pre_stop_s)
        inbound.close()
        _LOG.info("router.closed", requests=self.cores.open_requests)
        try:
            async with asyncio.timeout(options.drain_s):
                # A connection goes when its answer has left: later than its request has ended.
                await inbound.emptied.wait()
                await self.cores.idle()
        except TimeoutError:
            _LOG.warning("router.drain_exceeded", torn=len(inbound.connections))


@asynccontextmanager
async def router(settings: Settings, reload: Reload | None = None) -> AsyncIterator[Running]:
    """Serve in this event loop until the context ends.

    Raises:
        ConfigError: a tokenizer cannot be loaded, or an address not be bound.
    """
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            serving_cores(settings, reload, lambda: running.readiness())  # noqa: PLW0108 - it is made below
        )
        metrics, options = service.metrics, settings.router
        front = Front(service.cores, service.admission, lambda: running.readiness(), metrics)  # noqa: PLW0108 - alike
        inbound = Inbound(front.answer, front.unread, _connections_max())
        running = Running(service, front, inbound)
        metrics.connections.set_function(lambda: len(inbound.connections))
        metrics.connections_refused.set_function(lambda: inbound.refused)
        metrics.connections_cut.labels("head").set_function(lambda: inbound.cut_heads)
        metrics.connections_cut.labels("unread").set_function(lambda: inbound.cut_readers)
        context = service.listen_as("router.tls", options.tls)
        running.port = await stack.enter_async_context(
            listening(inbound, options.host, options.port, context)
        )
        yield running


def _connections_max() -> int:
    """Count the connections of clients that there are files for: each may need an engine's."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limits.CONNECTIONS_MAX, max(1, (files - limits.FILES_KEPT) // 2))

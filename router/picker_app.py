"""The picker's composition root: gRPC for gateways, health checks, an admin port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from kvatlas.common import limits
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import run_service
from kvatlas.common.tls import HTTP_2
from kvatlas.router.cores import Reload
from kvatlas.router.exchange import Gone, Unusable
from kvatlas.router.ext_proc import METHOD, SERVICE
from kvatlas.router.grpc.call import Call
from kvatlas.router.grpc.connection import Failed, Handler
from kvatlas.router.grpc.heads import Status
from kvatlas.router.grpc.health import CHECK, checks
from kvatlas.router.grpc.server import GrpcServer
from kvatlas.router.picker import Picker
from kvatlas.router.picker_tls import self_signed
from kvatlas.router.service import Service, serving_cores, settle_memory

_LOG = logger("picker")

_LIVE: Final = frozenset({"liveness"})
_READY: Final = frozenset({"", "readiness", SERVICE})


def run(settings: Settings, reload: Reload | None = None, warnings: Sequence[str] = ()) -> int:
    """Run the picker until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: the configuration.
        reload: reads it again; None where it has no file.
        warnings: what llm-d's configuration asks for and is done without, or otherwise.
    """
    log = configure_logs(settings.log.level, json=settings.log.json_lines)
    if warnings:
        _LOG.warning("config.llm_d", warnings=list(warnings))

    async def main(stop: asyncio.Event) -> None:
        async with picker(settings, reload) as running:
            running.service.metrics.log_dropped.set_function(lambda: log.dropped)
            settle_memory()
            _LOG.info(
                "picker.started",
                port=running.port,
                health_port=running.health_port,
                admin_port=running.service.admin_port,
            )
            await stop.wait()
            await running.drain()
        _LOG.info("picker.stopped")

    return run_service(main)


@dataclass(slots=True)
class Running:
    """A picker that serves, with its real ports."""

    service: Service
    picker: Picker
    server: GrpcServer
    port: int = 0
    health_port: int | None = None
    is_draining: bool = False
    is_closed: bool = False

    def readiness(self) -> str | None:
        """Say why not ready."""
        return "draining" if self.is_draining else self.service.cores.current.readiness()

    async def drain(self) -> None:
        """Send gateways elsewhere, taking what still comes, then let what is open finish."""
        options = self.service.cores.current.settings.router
        self.is_draining = True
        _LOG.info("picker.draining", requests=self.picker.open)
        await asyncio.sleep(options.pre_stop_s)
        self.is_closed = True
        _LOG.info("picker.closed", requests=self.picker.open)
        await self.server.stop(options.drain_s)
        if self.picker.open:
            _LOG.warning("picker.drain_exceeded", torn=self.picker.open)


@asynccontextmanager
async def picker(settings: Settings, reload: Reload | None = None) -> AsyncIterator[Running]:
    """Serve in this event loop until the context ends.

    Raises:
        ConfigError: a tokenizer cannot be loaded, or an address not be bound.
    """
    options = settings.picker
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            serving_cores(settings, reload, lambda: running.readiness(), is_picker=True)  # noqa: PLW0108 - it is made below
        )
        chosen = Picker(
            service.cores, service.admission, service.metrics, lambda: running.is_closed
        )
        health = {CHECK: checks(_LIVE, _READY, lambda: running.readiness())}  # noqa: PLW0108 - it is made below
        methods = {**health, f"/{SERVICE}/{METHOD}": _exchanges(chosen)}
        server = GrpcServer(methods, options.message_bytes_max)
        running = Running(service, chosen, server)
        context = None
        if options.secure_serving:
            context = service.listen_as("picker.tls", options.tls, HTTP_2) or self_signed()
        listening = server.listening(options.host, options.port, context)
        running.port = await stack.enter_async_context(listening)
        if options.health_port is not None:
            beside = GrpcServer(health, limits.HEALTH_MESSAGE_BYTES_MAX)
            listening = beside.listening(options.host, options.health_port)
            running.health_port = await stack.enter_async_context(listening)
        yield running


def _exchanges(chosen: Picker) -> Handler:
    """Make what answers exchanges; messages pass as bytes: what they say is for `ext_proc`."""

    async def process(call: Call) -> None:
        try:
            await chosen.process(call)
        except Gone:
            return
        except Unusable as fault:
            _LOG.error("gateway.unusable", fault=str(fault))
            raise Failed(Status.FAILED_PRECONDITION, str(fault)) from None

    return process

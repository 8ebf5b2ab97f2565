"""The picker's composition root: gRPC for gateways, health checks, an admin port."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from kvatlas.common import limits
from kvatlas.common.admin import Readiness
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import configure_logs, logger
from kvatlas.common.settings import PickerSettings, Settings
from kvatlas.common.tasks import run_service
from kvatlas.common.tls import TlsGauges, listen_credentials, watch
from kvatlas.router.cores import Reload
from kvatlas.router.exchange import Gone, Unusable
from kvatlas.router.ext_proc import METHOD, SERVICE
from kvatlas.router.picker import Picker
from kvatlas.router.picker_tls import SETTING, server_credentials
from kvatlas.router.service import Service, serving_cores

_LOG = logger("picker")

_HEALTH: Final = "grpc.health.v1.Health"
_LIVE: Final = frozenset({"liveness"})
_READY: Final = frozenset({"", "readiness", SERVICE})


def run(settings: Settings, reload: Reload | None = None) -> int:
    """Run the picker until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: the configuration.
        reload: reads it again; None where it has no file.
    """
    log = configure_logs(settings.log.level, json=settings.log.json_lines)

    async def main(stop: asyncio.Event) -> None:
        async with picker(settings, reload) as running:
            running.service.metrics.log_dropped.set_function(lambda: log.dropped)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*limits.GC_THRESHOLDS)
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
    server: grpc.aio.Server
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
        server = grpc.aio.server(options=_options(options))
        running = Running(service, chosen, server)
        server.add_generic_rpc_handlers((_Handlers(chosen, running.readiness),))
        credentials = _credentials(options, service) if options.secure_serving else None
        running.port = _listen(server, options.host, options.port, credentials)
        await stack.enter_async_context(_started(server))
        if options.health_port is not None:
            health = grpc.aio.server()
            health.add_generic_rpc_handlers((_Handlers(None, running.readiness),))
            running.health_port = _listen(health, options.host, options.health_port, None)
            await stack.enter_async_context(_started(health))
        yield running


@asynccontextmanager
async def _started(server: grpc.aio.Server) -> AsyncIterator[None]:
    await server.start()
    try:
        yield
    finally:
        await server.stop(limits.PICKER_CLOSE_S)


def _credentials(options: PickerSettings, service: Service) -> grpc.ServerCredentials:
    """Give what the gateways' port shows, and follow its files.

    Raises:
        ConfigError: the files cannot be used.
    """
    gauges = TlsGauges(service.metrics.tls_good, service.metrics.tls_not_after)
    files = listen_credentials(SETTING, options.tls, gauges)
    if files is not None:
        service.tasks.start(watch(lambda: [files]), "tls")
    return server_credentials(files)


def _options(settings: PickerSettings) -> list[tuple[str, Any]]:
    ping_ms = round(limits.PICKER_PING_S * 1e3)
    return [
        ("grpc.max_receive_message_length", settings.message_bytes_max),
        ("grpc.max_send_message_length", settings.message_bytes_max),
        ("grpc.keepalive_time_ms", ping_ms),
        ("grpc.keepalive_timeout_ms", ping_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", ping_ms // 10),
        ("grpc.so_reuseport", 0),
    ]


def _listen(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    """Bind an address.

    Raises:
        ConfigError: it cannot be bound.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise ConfigError([f"picker: {address}: cannot be bound"]) from None


class _Stream:
    """Messages of one call."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        """Give the next one; None at the end."""
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """Send one.

        Raises:
            Gone: there is nobody to send it to.
        """
        try:
            await self._context.write(message)
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            raise Gone from None


class _Handlers(grpc.GenericRpcHandler):
    """What answers calls: exchanges where there is a picker, health checks always.

    Messages pass as bytes: what they are made of is for `ext_proc` to know.
    """

    def __init__(self, chosen: Picker | None, readiness: Readiness) -> None:
        self._picker = chosen
        self._readiness = readiness
        self._methods: dict[str, Any] = {
            f"/{_HEALTH}/Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                health_pb2.HealthCheckRequest.FromString,
                health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        if chosen is not None:
            self._methods[f"/{SERVICE}/{METHOD}"] = grpc.stream_stream_rpc_method_handler(
                self._process
            )

    def service(self, handler_call_details: Any) -> Any:
        """Find what answers a call; None for one that is not served."""
        return self._methods.get(handler_call_details.method)

    async def _process(self, _messages: Any, context: Any) -> None:
        assert self._picker is not None  # noqa: S101 - it is served where there is one
        try:
            await self._picker.process(_Stream(context))
        except Gone:
            return
        except Unusable as fault:
            _LOG.error("gateway.unusable", fault=str(fault))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(fault))

    async def _check(self, asked: Any, _context: Any) -> Any:
        statuses = health_pb2.HealthCheckResponse
        found: int
        if asked.service in _LIVE:
            found = statuses.SERVING
        elif asked.service in _READY:
            found = statuses.SERVING if self._readiness() is None else statuses.NOT_SERVING
        else:
            found = statuses.SERVICE_UNKNOWN
        return statuses(status=found)

"""HTTP for operators, on a port of its own: health, readiness, metrics. And how we serve HTTP."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.listening import BACKLOG, listen

Readiness = Callable[[], str | None]
"""None when ready, else why not, in a few words."""


def admin_app(
    registry: CollectorRegistry, readiness: Readiness, body_bytes_max: int = 0
) -> web.Application:
    """Make the application with /metrics, /healthz and /readyz.

    Args:
        registry: of the metrics.
        readiness: says why not ready.
        body_bytes_max: of what is posted to paths that the caller adds.
    """
    app = web.Application(client_max_size=body_bytes_max)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz_handler(readiness))
    return app


def readyz_handler(readiness: Readiness) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Make the handler of /readyz: 200 when ready, else 503 and why."""

    async def readyz(_request: web.Request) -> web.Response:
        reason = readiness()
        if reason is None:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready", "reason": reason}, status=503)

    return readyz


@asynccontextmanager
async def serving(
    app: web.Application, host: str, port: int, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve an application until the context ends.

    Args:
        app: the application.
        host: to listen on.
        port: alike; 0 lets the system choose.
        ssl_context: to speak TLS with, and nothing else; None for HTTP.

    Yields:
        The port, which the system chose if 0 was asked for.

    Raises:
        ConfigError: the address cannot be bound.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=limits.CLIENT_KEEPALIVE_S,
        max_line_size=limits.HEADERS_BYTES_MAX,
        max_field_size=limits.HEADERS_BYTES_MAX,
        auto_decompress=False,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        site = _site(runner, host, port, ssl_context)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError([f"{host}:{port}: {error.strerror}"]) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _site(
    runner: web.AppRunner, host: str, port: int, ssl_context: ssl.SSLContext | None
) -> web.BaseSite:
    if ssl_context is None:
        return web.TCPSite(runner, host, port, backlog=BACKLOG)
    return _TlsSite(runner, host, port, ssl_context)


class _TlsSite(web.BaseSite):
    """A listening port like aiohttp's own, whose handshakes have a deadline of ours."""

    def __init__(
        self, runner: web.AppRunner, host: str, port: int, ssl_context: ssl.SSLContext
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=BACKLOG)
        self._host, self._port = host, port

    @property
    def name(self) -> str:
        """Give the address."""
        return f"https://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        await super().start()
        server = self._runner.server
        assert server is not None  # noqa: S101 - a runner that is set up has one
        self._server = await listen(server, self._host, self._port, self._ssl_context)

"""A port that serves gRPC."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from kvatlas.common import limits
from kvatlas.common.listening import listen
from kvatlas.router.grpc.connection import Connection, Handler


class GrpcServer:
    """All connections of peers to one port.

    Args:
        methods: what answers calls, by path; others are told that there is no such method.
        message_bytes_max: of one message of a peer.
    """

    def __init__(self, methods: Mapping[str, Handler], message_bytes_max: int) -> None:
        self.methods = methods
        self.message_bytes_max = message_bytes_max
        self._connections: set[Connection] = set()
        self._is_closed = False
        self._emptied = asyncio.Event()
        self._listener: asyncio.Server | None = None

    def takes(self, connection: Connection) -> bool:
        """Take a connection, if there is room for it."""
        if self._is_closed or len(self._connections) >= limits.GRPC_CONNECTIONS_MAX:
            return False
        self._connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if self._is_closed and not self._connections:
            self._emptied.set()

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, let what is under way finish, and break off what does not."""
        self._is_closed = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._emptied.wait()
        self.tear()

    def tear(self) -> None:
        """Break off what is left."""
        for connection in list(self._connections):
            connection.tear()

    @asynccontextmanager
    async def listening(
        self, host: str, port: int, ssl_context: ssl.SSLContext | None = None
    ) -> AsyncIterator[int]:
        """Take connections until the context ends.

        Yields:
            The port, which the system chose if 0 was asked for.

        Raises:
            ConfigError: the address cannot be bound.
        """
        listener = await listen(lambda: Connection(self), host, port, ssl_context)
        self._listener = listener
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            self._is_closed = True
            listener.close()
            self.tear()
            await listener.wait_closed()

"""Connections to engines that are free, and how new ones are made."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import Exhausted
from kvatlas.common.exhaustion import is_ours
from kvatlas.router.arrival import Answer, EngineFailed
from kvatlas.router.outbound import EngineConnection, Target


class EnginePool:
    """Connections that are free, by engine, and how new ones are made.

    Args:
        connect_s: to make one.
    """

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._free: dict[Target, deque[EngineConnection]] = {}
        self._all: set[EngineConnection] = set()
        self._loop = asyncio.get_running_loop()

    async def send(
        self, target: Target, request: Sequence[bytes], limits_s: tuple[float, float]
    ) -> Answer:
        """Send a request and wait for the first byte of the answer's body.

        Args:
            target: whom to.
            request: head and body.
            limits_s: to the first byte, and between two reads behind it.

        Raises:
            EngineFailed: there is no answer.
        """
        head, body = request
        first_byte_s, idle_s = limits_s
        connection = self._take(target) or await self._connect(target)
        answer = connection.send(head, body, idle_s)
        try:
            await answer.first(first_byte_s)
        except BaseException:
            connection.give_up(answer)
            raise
        return answer

    @property
    def under_way(self) -> int:
        """Count the connections that are not free."""
        return len(self._all) - sum(map(len, self._free.values()))

    def release(self, connection: EngineConnection) -> None:
        """Keep a connection that is free."""
        connection.free_since = monotonic()
        self._free.setdefault(connection.target, deque()).append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """Drop a connection that is closed."""
        self._all.discard(connection)
        free = self._free.get(connection.target)
        if free is not None and connection in free:
            free.remove(connection)

    async def run(self) -> None:
        """Close what has been free for long, for ever."""
        while True:
            await asyncio.sleep(limits.UPSTREAM_KEEPALIVE_S)
            oldest = monotonic() - limits.UPSTREAM_KEEPALIVE_S
            for target, free in list(self._free.items()):
                while free and free[0].free_since < oldest:
                    free.popleft().close()
                if not free:
                    del self._free[target]

    def close(self) -> None:
        """Close all."""
        for connection in list(self._all):
            connection.close()

    def _take(self, target: Target) -> EngineConnection | None:
        free = self._free.get(target)
        oldest = monotonic() - limits.UPSTREAM_KEEPALIVE_S
        while free:
            # The one that was used last is the surest to live.
            connection = free.pop()
            if not connection.is_closed and connection.free_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, target: Target) -> EngineConnection:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: EngineConnection(self, target),
                    target.host,
                    target.port,
                    ssl=target.tls,
                    server_hostname=target.server_name,
                )
        except ssl.SSLError:
            raise EngineFailed("tls") from None
        except TimeoutError:
            raise EngineFailed("connect_timeout") from None
        except ConnectionResetError:
            # A connection that was made, and broken off in its handshake.
            raise EngineFailed("tls" if target.tls else "connect") from None
        except OSError as error:
            if is_ours(error):
                raise Exhausted("the router has no file left for a connection") from None
            raise EngineFailed("connect") from None
        self._all.add(connection)
        return connection

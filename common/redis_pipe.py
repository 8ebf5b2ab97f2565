"""One connection to Redis that many callers share: what they ask at once travels together.

redis-py takes a connection per call and about 100 us of Python; a router asks one question per
request. Here a call writes its command and gets a future; commands of the same turn of the loop
leave in one write, replies come back in order. A caller that leaves harms no other: its reply is
read and dropped. The connection is made anew, with a pause, when it breaks; nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import hiredis

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.redis_client import RedisArg, reason_of

Reply = Any
"""What hiredis reads: bytes, int, None, lists of these."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, and how to greet it.

    Attributes:
        host, port: of a TCP socket; without them `path` names a unix socket.
        tls: None for a plain connection.
        greeting: commands that open every connection, such as AUTH and SELECT; secret.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    greeting: tuple[tuple[RedisArg, ...], ...] = field(default=(), repr=False)


Locate = Callable[[], Awaitable[Address]]
"""Find out where Redis is at the moment; asked before every connection."""


class RedisPipe:
    """A shared connection; made when it is first used.

    Args:
        locate: where to connect to.
    """

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None
        self._not_before = 0.0

    async def call(self, *command: RedisArg) -> Reply:
        """Send a command and wait for its reply, however long that takes.

        Raises:
            IndexUnavailable: there is no connection, it broke, or Redis answered with an error.
                Whether a command that was sent was run is then unknown.
        """
        wire = self._wire
        if wire is None or wire.is_closed:
            wire = await self._connected()
        return await wire.send(_packed(command))

    def close(self) -> None:
        """Close the connection; what waits for a reply fails."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None:
            self._wire.close()

    async def _connected(self) -> _Wire:
        """Wait for the one attempt that all callers share."""
        if self._connecting is None:
            if monotonic() < self._not_before:
                raise IndexUnavailable("connection")
            self._connecting = asyncio.create_task(self._connect(), name="redis connect")
            self._connecting.add_done_callback(self._note)
        # A caller's deadline must not end the attempt for the others.
        return await asyncio.shield(self._connecting)

    def _note(self, attempt: asyncio.Task[_Wire]) -> None:
        self._connecting = None
        if attempt.cancelled():
            return
        if attempt.exception() is None:
            self._wire = attempt.result()
        else:
            self._not_before = monotonic() + limits.REDIS_RECONNECT_S

    async def _connect(self) -> _Wire:
        try:
            async with asyncio.timeout(limits.REDIS_CONNECT_S):
                wire = await _open(await self._locate())
        except TimeoutError as error:
            raise IndexUnavailable("timeout") from error
        except OSError as error:
            raise IndexUnavailable("connection") from error
        return wire


def _packed(command: Sequence[RedisArg]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # typed as a 1-tuple
    return packed


async def _open(address: Address) -> _Wire:
    loop = asyncio.get_running_loop()
    if address.path:
        _, wire = await loop.create_unix_connection(_Wire, address.path)
    else:
        _, wire = await loop.create_connection(_Wire, address.host, address.port, ssl=address.tls)
    try:
        for command in address.greeting:
            await wire.send(_packed(command))
    except BaseException:
        wire.close()
        raise
    return wire


MORE: Final = False
"""What hiredis gives while a reply is incomplete."""


class _Wire(asyncio.Protocol):
    """One connection: commands out, replies in, in order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=MORE)
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.is_closed = False

    def send(self, packed: bytes) -> asyncio.Future[Reply]:
        """Queue a command; those of one turn of the loop are written together."""
        reply: asyncio.Future[Reply] = self._loop.create_future()
        if self.is_closed:
            reply.set_exception(IndexUnavailable("connection"))
        elif len(self._waiting) >= limits.REDIS_WAITING_MAX:
            reply.set_exception(IndexUnavailable("pool"))
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(packed)
            self._waiting.append(reply)
        return reply

    def close(self) -> None:
        """Break the connection off."""
        if self._transport is not None:
            self._transport.abort()
        self._fail()

    def _flush(self) -> None:
        if self._unsent and self._transport is not None and not self.is_closed:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    # --- what the transport calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Give replies to those who wait."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not MORE:
                self._deliver(reply)
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def _deliver(self, reply: Reply) -> None:
        waiting = self._waiting.popleft()
        if waiting.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            waiting.set_exception(IndexUnavailable(reason_of(str(reply)) or "error"))
        else:
            waiting.set_result(reply)

    def connection_lost(self, _error: Exception | None) -> None:
        """End."""
        self._fail()

    def _fail(self) -> None:
        self.is_closed = True
        self._unsent.clear()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(IndexUnavailable("connection"))

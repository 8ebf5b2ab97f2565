"""A Redis client whose calls share one connection: what is asked at once travels together.

redis-py takes a connection out of a pool for each call, and 100 us of Python; a router asks one
small question per request, and an indexer writes for many endpoints at once. Here a call writes
its command and gets a future, and replies come back in order. The first command of a turn of the
loop leaves at once, those after it in ever larger groups: so Redis works on the first while we
write the others, and many share few writes. A caller that leaves harms no other: its reply is read
and dropped. redis-py makes the connection (addresses, TLS, login, as all others of ours) and hands
it over; hiredis reads the replies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis import exceptions as redis_errors
from redis._parsers import BaseParser
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.redis_routed import NoPool, OneRedis, is_astray

Reply = Any
"""What hiredis reads: bytes, int, None, lists of these."""

MORE: Final = False
"""What hiredis gives while a reply is incomplete."""


class SharedRedis(OneRedis):
    """A client of one server; its connection is made at first use, and again after it broke.

    Nothing is sent twice. Replies are as Redis sent them.

    Args:
        make: makes a connection, not yet connected.
        timeout_s: silence of the server, while it owes replies, after which the connection counts
            as broken. How long a call waits is for its caller to say.
    """

    def __init__(self, make: Callable[[], AbstractConnection], timeout_s: float) -> None:
        super().__init__(connection_pool=NoPool())
        self._make = make
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._not_before = 0.0
        self._failure: BaseException = redis_errors.ConnectionError("no connection")
        """Of the last attempt to connect."""
        self._is_closed = False

    async def execute_command(self, *args: Any, **options: Any) -> Reply:
        """Run a command.

        Raises:
            RedisError: there is no connection, it broke, or Redis answered with an error. Whether
                a command that was sent was run is then unknown.
        """
        del options
        wire = self._wire
        if wire is None or wire.is_closed:
            wire = await self.wire()
        try:
            return await wire.send(args)
        except redis_errors.ResponseError as error:
            if is_astray(error):
                # The address may mean another server next time.
                wire.close()
            raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's
        """Collect commands that are sent one right behind the other."""
        if transaction or shard_hint:
            raise ValueError("a shared connection has no transactions")
        return _SharedPipeline(self)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's
        """Close the connection; what waits for a reply fails."""
        del close_connection_pool
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()

    async def wire(self) -> Wire:
        """Give the connection; a call's deadline does not end the attempt for the others.

        Raises:
            RedisError, OSError: there is none.
        """
        if self._wire is not None and not self._wire.is_closed:
            return self._wire
        attempt = self._connecting
        if attempt is None:
            if self._is_closed:
                raise redis_errors.ConnectionError("closed")
            if monotonic() < self._not_before:
                raise self._failure.with_traceback(None)
            attempt = asyncio.create_task(self._connect(), name="redis connect")
            attempt.add_done_callback(self._note)
            self._connecting = attempt
        await asyncio.wait([attempt])
        if attempt.cancelled():
            raise redis_errors.ConnectionError("closed")
        return attempt.result()

    async def _connect(self) -> Wire:
        connection = self._make()
        try:
            async with asyncio.timeout(limits.REDIS_CONNECT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Wire(connection, self._timeout_s)

    def _note(self, attempt: asyncio.Task[Wire]) -> None:
        self._connecting = None
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is None:
            self._wire = attempt.result()
        else:
            self._failure = error
            self._not_before = monotonic() + limits.REDIS_RECONNECT_S


class Wire(asyncio.Protocol):
    """One connection: commands out, replies in, in order.

    Args:
        connection: redis-py's, connected and greeted; its transport is taken over.
        timeout_s: as for SharedRedis.
    """

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(notEnoughData=MORE, replyError=BaseParser.parse_error)
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._unsent: list[bytes] = []
        self._group = 1
        self._is_within_turn = False
        self._heard_at = 0.0
        self.is_closed = False
        writer = connection._writer  # noqa: SLF001 - there is no other way to its transport
        if writer is None:
            raise redis_errors.ConnectionError("closed")
        # Whoever lets a writer go closes its transport.
        self._writer = writer
        connection._reader = connection._writer = None  # noqa: SLF001
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", writer.transport)
        self._transport.set_protocol(self)
        # uvloop would keep what is written until the turn ends.
        self._transport.set_write_buffer_limits(high=0)
        if self._transport.is_closing():
            self._fail(redis_errors.ConnectionError("closed"))

    def send(self, command: Sequence[Any]) -> asyncio.Future[Reply]:
        """Queue a command, and write it with those of its group."""
        now = monotonic()
        if self._waiting and now - self._heard_at > self._timeout_s:
            self.close(redis_errors.TimeoutError("the server owes replies and is silent"))
        reply: asyncio.Future[Reply] = self._loop.create_future()
        if self.is_closed:
            reply.set_exception(redis_errors.ConnectionError("closed"))
        elif (
            len(self._waiting) >= limits.REDIS_WAITING_MAX
            or self._transport.get_write_buffer_size() > limits.REDIS_UNSENT_BYTES_MAX
        ):
            reply.set_exception(redis_errors.MaxConnectionsError("too many calls wait"))
        else:
            if not self._waiting:
                self._heard_at = now
            self._waiting.append(reply)
            self._queue(_packed(command))
        return reply

    def close(self, why: Exception | None = None) -> None:
        """Break the connection off."""
        self._transport.abort()
        self._fail(why or redis_errors.ConnectionError("closed"))

    def _queue(self, command: bytes) -> None:
        """Write groups of 1, 2, 4, ... commands within a turn of the loop, the rest at its end."""
        self._unsent.append(command)
        if not self._is_within_turn:
            self._is_within_turn = True
            self._loop.call_soon(self._end_turn)
        if len(self._unsent) >= self._group:
            self._group *= 2
            self._flush()

    def _end_turn(self) -> None:
        self._is_within_turn = False
        self._group = 1
        self._flush()

    def _flush(self) -> None:
        if self._unsent and not self.is_closed:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    # --- what the transport calls ----------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Give replies to those who wait."""
        self._heard_at = monotonic()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not MORE:
                self._deliver(reply)
        except (hiredis.ProtocolError, IndexError):
            self.close(redis_errors.InvalidResponse("not what Redis says"))

    def _deliver(self, reply: Reply) -> None:
        waiting = self._waiting.popleft()
        if waiting.done():
            return
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        del exc
        self._fail(redis_errors.ConnectionError("lost"))

    def _fail(self, why: Exception) -> None:
        self.is_closed = True
        self._unsent.clear()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(why)


class _SharedPipeline(Pipeline):
    """Commands that stay together on a shared connection."""

    def __init__(self, shared: SharedRedis) -> None:
        super().__init__(
            shared.connection_pool, shared.response_callbacks, transaction=False, shard_hint=None
        )
        self._shared = shared

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's
        """Run what was collected."""
        stack, self.command_stack = self.command_stack, []
        wire = await self._shared.wire()
        # They come in this order, so to wait for one after the other costs nothing more.
        waiting = [wire.send(args) for args, _ in stack]
        replies: list[Any] = []
        try:
            for each in waiting:
                replies.append(await _outcome(each))  # noqa: PERF401 - those that came are counted
        finally:
            for each in waiting[len(replies) :]:
                each.cancel()
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies


async def _outcome(waiting: asyncio.Future[Reply]) -> Reply:
    """Give a reply, or the error instead of it."""
    try:
        return await waiting
    except Exception as error:  # noqa: BLE001 - given to the caller, who raises it
        return error


def _packed(command: Sequence[Any]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(command))
    return packed

"""One connection of a client: requests in, answers out in the same order.

Every bound on what a stranger can hold open is here: heads, idle time, connections, requests sent
ahead, and how long a client may take to read. docs/adr/0006-own-data-path.md says why this is ours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import HttpError, InternalError, TooManyConnections
from kvatlas.common.listening import listen
from kvatlas.common.log import logger
from kvatlas.router.headers import Header
from kvatlas.router.inbound import Inbound
from kvatlas.router.reading import RequestReader
from kvatlas.router.request import Request, Source
from kvatlas.router.writing import CONTINUE, AnswerWriter

_LOG = logger("inbound")

NEVER = float("inf")


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._writer: AnswerWriter
        self._reader = RequestReader(self._begun)
        self._current: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._source: Source | None = None
        self._peer: str | None = None
        self._has_begun = self._is_paused = self._is_lingering = self._is_deaf = False
        self._has_served = False
        self._reads = True
        self._deadline = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._unread_bytes = 0

    # --- what the transport calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, if there is room for it."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else None
        inbound = self._inbound
        self._writer = AnswerWriter(self._transport, inbound.dates)
        if len(inbound.connections) >= inbound.connections_max:
            inbound.refused += 1
            self._is_lingering = True
            error = TooManyConnections("too many connections; try again")
            self._writer.whole(inbound.refusal(error, ""), None, keeps_alive=False)
            self._transport.close()
            return
        inbound.connections.add(self)
        self._expire_in(limits.HEAD_READ_S)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_lingering or self._is_deaf:
            return
        reader = self._reader
        if reader.is_in_head and not reader.head_bytes and self._current is None:
            self._expire_in(limits.HEAD_READ_S)
        try:
            reader.feed(data)
        except HttpError as error:
            self._refuse(error)
        else:
            self._flow()

    def eof_received(self) -> None:
        """Take a client that sends no more for one that is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way for it."""
        del exc
        self._inbound.left(self)
        if self._timer is not None:
            self._timer.cancel()
        self._reader.requests.clear()
        self._is_lingering = True
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Hold the source back, and wait for the client for a while only."""
        self._is_paused = True
        if self._source is not None:
            self._source.pause()
        self._expire_unread()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        if self._is_lingering:
            return
        self._deadline = NEVER
        if self._source is not None:
            self._source.resume()
        elif self._current is None:
            self._await_next()

    # --- requests -----------------------------------------------------------------------------

    def _begun(self, request: Request) -> None:
        request.peer = self._peer
        request.outflow = self
        request.on_ask(self._ask_for_body)

    def _flow(self) -> None:
        """Serve the next request, and read no more than is wanted."""
        requests = self._reader.requests
        # Nobody is answered who does not read: the answers would pile up here.
        is_free = self._current is None and not self._is_paused
        if is_free and requests and not self._is_lingering:
            self._current = requests.popleft()
            self._has_begun, self._has_served = False, True
            self._deadline = NEVER
            self._task = self._loop.create_task(self._serve(self._current))
        receiving = self._reader.receiving
        wants = not requests and not (receiving is not None and receiving.is_ahead)
        if wants != self._reads and not self._transport.is_closing():
            self._reads = wants
            if wants:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _ask_for_body(self) -> None:
        current = self._current
        expected = current is not None and current.headers.get("expect", "").lower()
        if current is not None and expected == "100-continue" and not current.is_http_10:
            self._transport.write(CONTINUE)
        self._flow()

    async def _serve(self, request: Request) -> None:
        try:
            response = await self._inbound.handler(request)
        except (asyncio.CancelledError, ConnectionError):
            if not self._is_lingering:
                self.abort()
            return
        except Exception as error:  # noqa: BLE001 - the last frame of a request: told, and a 500
            _LOG.error("request.failed", error=type(error).__name__)
            if self._has_begun:
                self.abort()
                return
            failed = InternalError("the router failed")
            response = self._inbound.refusal(failed, request.path)
        inbound = self._inbound
        # A head that is out has promised the client that it may go on.
        is_last = inbound.is_closed if self._has_begun else inbound.is_closing
        keeps_alive = request.keeps_alive and request.is_whole and not is_last
        if response is not None:
            self._writer.whole(response, request, keeps_alive=keeps_alive)
            for then in response.then:
                then()
        self._done(request, keeps_alive=keeps_alive)

    def _done(self, request: Request, *, keeps_alive: bool) -> None:
        """End a request: take the next one, or close."""
        self._task = self._source = None
        if self._transport.is_closing():
            return
        if keeps_alive:
            self._current = None
            if not self._is_paused:
                self._await_next()
        elif request.is_whole:
            self._is_lingering = True
            self._transport.close()
            self._expire_unread()
        else:
            self._linger()

    def _await_next(self) -> None:
        """Wait for the next request, of which a part may be here."""
        has_begun = self._reader.head_bytes
        self._expire_in(limits.HEAD_READ_S if has_begun else limits.CLIENT_KEEPALIVE_S)
        self._flow()

    def _linger(self) -> None:
        """Close when the client has read the answer: what it still sends would make it lose it."""
        self._is_lingering = True
        self._reader.requests.clear()
        if not self._reads:
            self._reads = True
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expire_in(limits.LINGER_S)

    def _refuse(self, error: HttpError) -> None:
        """Answer what cannot be read, behind what could; nothing after it is read."""
        reader = self._reader
        self._is_deaf = True
        if (broken := reader.receiving) is not None:
            broken.fail(error)
        elif self._current is None and not reader.requests:
            self._writer.whole(self._inbound.refusal(error, ""), None, keeps_alive=False)
            self._linger()
        else:
            # The answers under way come first, and say that the connection ends with them.
            last = reader.requests[-1] if reader.requests else self._current
            if last is not None:
                last.keeps_alive = False
        self._flow()

    @property
    def is_busy(self) -> bool:
        """Tell whether a request is under way, or has begun to arrive."""
        reader = self._reader
        return self._current is not None or bool(reader.requests) or reader.head_bytes > 0

    def leave_if_idle(self) -> None:
        """Close unless it is busy."""
        if not self.is_busy:
            self._transport.close()

    def abort(self) -> None:
        """Break it off."""
        self._transport.abort()

    # --- answers that come piece by piece -----------------------------------------------------

    def begin(self, status: int, reason: str, headers: Sequence[Header], source: Source) -> None:
        """Write the head."""
        request = cast("Request", self._current)
        request.keeps_alive &= request.is_whole and not self._inbound.is_closing
        self._writer.begin(request, status, reason, headers)
        self._has_begun = True
        self._source = source
        if self._is_paused:
            source.pause()

    def write(self, piece: bytes) -> None:
        """Write a piece of the body; it leaves at once."""
        self._writer.piece(piece)

    def end(self) -> None:
        """End the body well."""
        self._writer.end()
        # A client that goes from here on takes nothing with it.
        self._task = None

    def tear(self) -> None:
        """Break the answer off, behind what was written of it."""
        self._is_lingering = True
        self._task = None
        request = self._current
        if self._writer.is_chunked or (request is not None and not request.is_http_10):
            # What is missing shows; the rest may still be on its way.
            self._transport.close()
            self._expire_unread()
        else:
            self._transport.abort()

    # --- time ---------------------------------------------------------------------------------

    def _expire_in(self, seconds: float) -> None:
        """Set when it is too late; a timer that rings before goes on to then."""
        now = monotonic()
        self._deadline = now + seconds
        if self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(now)

    def _expire_unread(self) -> None:
        """Set when it is too late for a client to read on."""
        self._unread_bytes = self._transport.get_write_buffer_size()
        self._expire_in(limits.WRITE_IDLE_S)

    def _set_timer(self, now: float) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_later(max(0.0, self._deadline - now), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, NEVER
        now = monotonic()
        if self._deadline == NEVER:
            return
        if now < self._deadline:
            self._set_timer(now)
            return
        inbound, unread = self._inbound, self._transport.get_write_buffer_size()
        if unread and self._unread_bytes - unread >= limits.WRITE_BYTES_LEAST:
            self._expire_unread()
            return
        if unread:
            inbound.cut_readers += 1
        elif self._current is None and (self._reader.head_bytes or not self._has_served):
            inbound.cut_heads += 1
        self.abort()


@asynccontextmanager
async def listening(
    inbound: Inbound, host: str, port: int, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Take connections until the context ends.

    Yields:
        The port, which the system chose if 0 was asked for.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server = await listen(lambda: Connection(inbound), host, port, ssl_context)
    inbound.server = server
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        inbound.tear()
        await server.wait_closed()

"""Clients' connections: HTTP/1.1, read by llhttp (httptools), answered in order.

Every bound on what a stranger can hold open is here: heads, idle time, connections, requests sent
ahead, and how long a client may take to read. docs/adr/0006-own-data-path.md says why this is ours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from http import HTTPStatus
from time import time as wall
from typing import Final, cast

import httptools

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger
from kvatlas.router.headers import Header
from kvatlas.router.request import Headers, Request, Response, Source

_LOG = logger("inbound")

Handler = Callable[[Request], Awaitable[Response | None]]
"""Answers a request; None where it has written the answer piece by piece."""

Refusal = Callable[[int, str], Response]
"""Writes an error of HTTP itself: status, message."""

VERSIONS: Final = ("1.1", "1.0")
BODILESS: Final = frozenset({204, 304})
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_UPGRADING: Final = frozenset({"upgrade", "http2-settings", "connection"})
_LAST_CHUNK: Final = b"0\r\n\r\n"
_READ_ON: Final = "what the client asked for is unclear"


class Inbound:
    """All connections of clients to one port.

    Args:
        handler: answers requests.
        refusal: writes errors of HTTP itself.
        connections_max: open at once; those above are told so and closed.

    Attributes:
        is_closing: whether clients are told to take their next request elsewhere.
        refused: connections that were too many, since the start.
    """

    def __init__(self, handler: Handler, refusal: Refusal, connections_max: int) -> None:
        self.handler = handler
        self.refusal = refusal
        self.connections_max = connections_max
        self.connections: set[Connection] = set()
        self.is_closing = False
        self.refused = 0
        self._date = (0, b"")

    def date(self) -> bytes:
        """Give the Date header's line, written once a second."""
        second = int(wall())
        if self._date[0] != second:
            self._date = (second, f"Date: {formatdate(second, usegmt=True)}\r\n".encode())
        return self._date[1]

    def drain(self) -> None:
        """Close each connection behind the answer that it waits for, idle ones at once."""
        self.is_closing = True
        for connection in list(self.connections):
            connection.leave_if_idle()

    def tear(self) -> None:
        """Break off what is left."""
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection: requests in, answers out in the same order."""

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._receiving: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._source: Source | None = None
        self._peer: str | None = None
        # Of the head that is being read.
        self._url = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._is_in_head = True
        self._fault: str | None = None
        # Of the answer that is being written.
        self._has_begun = self._is_chunked = False
        self._is_paused = self._is_lingering = self._reads = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    # --- what the transport calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, if there is room for it."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else None
        inbound = self._inbound
        self._reads = True
        if len(inbound.connections) >= inbound.connections_max:
            inbound.refused += 1
            refused = inbound.refusal(503, "too many connections; try again")
            self._write_whole(refused, keeps_alive=False)
            self._transport.close()
            return
        inbound.connections.add(self)
        self._expire_in(limits.HEAD_READ_S)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_lingering:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes == len(data) and self._current is None:
                self._expire_in(limits.HEAD_READ_S)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, self._fault or _READ_ON)
        else:
            if self._is_in_head and self._head_bytes > limits.HEADERS_BYTES_MAX:
                self._refuse(400, "the headers are too large")
            self._flow()

    def eof_received(self) -> None:
        """Take a client that sends no more for one that is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way for it."""
        del exc
        self._inbound.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()
        self._is_lingering = True
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Hold the source back, and wait for the client for a while only."""
        self._is_paused = True
        if self._source is not None:
            self._source.pause()
        self._expire_in(limits.WRITE_IDLE_S)

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        self._deadline = float("inf")
        if self._source is not None:
            self._source.resume()

    # --- what the parser calls ----------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one behind the body is dropped."""
        if self._is_in_head:
            self._headers.append((name.decode(), value.decode("utf-8", "surrogateescape")))
            if len(self._headers) > limits.HEADERS_MAX:
                self._stop("too many headers")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        parser = self._parser
        if parser.should_upgrade():
            return
        headers = Headers(self._headers)
        self._demand_sense(headers)
        request = Request(parser.get_method().decode(), _origin_form(self._url.decode()), headers)
        request.is_http_10 = parser.get_http_version() == "1.0"
        request.keeps_alive = parser.should_keep_alive()
        request.peer = self._peer
        if "transfer-encoding" in headers:
            request.content_length = None
        elif (length := headers.get("content-length")) is not None:
            request.content_length = int(length)
        request.outflow = self
        request.on_ask(self._ask_for_body)
        self._is_in_head, self._url, self._headers = False, b"", []
        self._receiving = request
        self._queue.append(request)
        if len(self._queue) > limits.PIPELINED_MAX:
            self._stop("too many requests at once")

    def on_body(self, piece: bytes) -> None:
        """Take a piece of a body."""
        if self._receiving is not None:
            self._receiving.feed(piece)

    def on_message_complete(self) -> None:
        """End a body."""
        if self._receiving is not None:
            self._receiving.complete()
            self._receiving = None
            self._is_in_head, self._head_bytes = True, 0

    # --- requests -----------------------------------------------------------------------------

    def _demand_sense(self, headers: Headers) -> None:
        """Refuse what two readers of HTTP might understand differently."""
        version = self._parser.get_http_version()
        if version not in VERSIONS:
            self._stop("this version of HTTP is not spoken")
        hosts = sum(1 for name, _ in self._headers if name.lower() == "host")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._stop("exactly one Host is needed")
        coding = headers.get("transfer-encoding")
        if coding is not None and (coding.lower() != "chunked" or version == "1.0"):
            self._stop("this Transfer-Encoding is not understood")
        # What came in one read with the body is not all head: exactly what is stands in these.
        exact = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if exact > limits.HEADERS_BYTES_MAX:
            self._stop("the headers are too large")

    def _stop(self, fault: str) -> None:
        """Have the parser stop.

        Raises:
            ValueError: always; the parser makes its own error of it.
        """
        self._fault = fault
        raise ValueError

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a request that offers another protocol as one that does not: we take no offers."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT" or len(self._queue) > limits.PIPELINED_MAX:
            self._refuse(405, "this is no proxy of that kind")
            return
        kept = [each for each in self._headers if each[0].lower() not in _UPGRADING]
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept)
        head = b"%s %s HTTP/%s\r\n" % (method, self._url, version.encode())
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers, self._head_bytes = b"", [], 0
        self.data_received(head + lines.encode("utf-8", "surrogateescape") + b"\r\n" + rest)

    def _flow(self) -> None:
        """Serve the next request, and read no more than is wanted."""
        if self._current is None and self._queue and not self._is_lingering:
            self._current = self._queue.popleft()
            self._has_begun = False
            self._deadline = float("inf")
            self._task = self._loop.create_task(self._serve(self._current))
        receiving = self._receiving
        wants = not self._queue and not (receiving is not None and receiving.is_ahead)
        if wants != self._reads and not self._transport.is_closing():
            self._reads = wants
            if wants:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _ask_for_body(self) -> None:
        current = self._current
        if current is not None and current.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(_CONTINUE)
        self._flow()

    async def _serve(self, request: Request) -> None:
        try:
            response = await self._inbound.handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self.abort()
            return
        except Exception as error:  # noqa: BLE001 - the last frame of a request: told, and a 500
            _LOG.error("request.failed", path=request.path[:64], error=type(error).__name__)
            if self._has_begun:
                self.abort()
                return
            response = self._inbound.refusal(500, "the router failed")
        keeps_alive = self._keeps_alive(request)
        if response is not None:
            is_head = request.method == "HEAD"
            self._write_whole(
                response,
                keeps_alive=keeps_alive,
                is_http_10=request.is_http_10,
                is_head=is_head,
            )
        self._done(request, keeps_alive=keeps_alive)

    def _keeps_alive(self, request: Request) -> bool:
        return request.keeps_alive and request.is_whole and not self._inbound.is_closing

    def _done(self, request: Request, *, keeps_alive: bool) -> None:
        """End a request: take the next one, or close."""
        self._task = self._source = None
        if self._transport.is_closing():
            return
        if keeps_alive:
            self._current = None
            self._expire_in(limits.CLIENT_KEEPALIVE_S)
            self._flow()
        elif request.is_whole:
            self._is_lingering = True
            self._transport.close()
            self._expire_in(limits.WRITE_IDLE_S)
        else:
            self._linger()

    def _linger(self) -> None:
        """Close when the client has read the answer: what it still sends would make it lose it."""
        self._is_lingering = True
        self._queue.clear()
        if not self._reads:
            self._reads = True
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expire_in(limits.LINGER_S)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read, behind all that could; nothing after it is read."""
        if self._is_lingering:
            return
        if self._current is not None or self._queue:
            # Answers are in order: this one would be taken for another's.
            if self._task is not None and self._receiving is self._current:
                self._task.cancel()
            self._transport.close()
            self._is_lingering = True
            return
        self._write_whole(self._inbound.refusal(status, message), keeps_alive=False)
        self._linger()

    def leave_if_idle(self) -> None:
        """Close unless a request is under way, or has begun to arrive."""
        if self._current is None and not self._queue and not self._head_bytes:
            self._transport.close()

    def abort(self) -> None:
        """Break it off."""
        self._transport.abort()

    # --- answers ------------------------------------------------------------------------------

    def begin(self, status: int, reason: str, headers: Sequence[Header], source: Source) -> None:
        """Write the head of an answer whose body comes piece by piece."""
        request = cast("Request", self._current)
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        self._is_chunked = not (has_length or request.is_http_10 or status in BODILESS)
        request.keeps_alive = self._keeps_alive(request) and (self._is_chunked or has_length)
        self._has_begun = True
        self._source = source
        framing = [b"Transfer-Encoding: chunked\r\n"] if self._is_chunked else []
        head = self._head(status, reason, headers, framing)
        self._transport.write(
            head + _connection(is_http_10=request.is_http_10, keeps=request.keeps_alive) + b"\r\n"
        )
        if self._is_paused:
            source.pause()

    def write(self, piece: bytes) -> None:
        """Write a piece of the body; it leaves at once."""
        if self._is_chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._transport.write(piece)

    def end(self) -> None:
        """End the body well."""
        if self._is_chunked:
            self._transport.write(_LAST_CHUNK)
        # A client that goes from here on takes nothing with it.
        self._task = None

    def tear(self) -> None:
        """Break the answer off, behind what was written of it."""
        self._is_lingering = True
        self._task = None
        request = self._current
        if self._is_chunked or (request is not None and not request.is_http_10):
            # What is missing shows; the rest may still be on its way.
            self._transport.close()
            self._expire_in(limits.WRITE_IDLE_S)
        else:
            self._transport.abort()

    def _write_whole(
        self, response: Response, *, keeps_alive: bool, is_http_10: bool = False,
        is_head: bool = False,
    ) -> None:  # fmt: skip
        lengths = [b"Content-Length: %d\r\n" % len(response.body)]
        head = self._head(
            response.status, response.reason, response.headers,
            [] if response.status in BODILESS else lengths,
        )  # fmt: skip
        head += _connection(is_http_10=is_http_10, keeps=keeps_alive) + b"\r\n"
        self._transport.write(head if is_head else head + response.body)

    def _head(
        self, status: int, reason: str, headers: Sequence[Header], framing: Sequence[bytes]
    ) -> bytes:
        told = "".join([f"{name}: {value}\r\n" for name, value in headers])
        line = f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\n"
        return b"".join((
            (line + told).encode("utf-8", "surrogateescape"),
            *framing,
            self._inbound.date(),
            b"Server: kvatlas\r\n",
        ))  # fmt: skip

    # --- time ---------------------------------------------------------------------------------

    def _expire_in(self, seconds: float) -> None:
        """Set when it is too late; a timer that rings before goes on to then."""
        now = monotonic()
        self._deadline = now + seconds
        if self._deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_later(max(0.0, self._deadline - now), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = monotonic()
        if self._deadline == float("inf"):
            return
        if now < self._deadline:
            self._set_timer(now)
        else:
            self.abort()


def _origin_form(target: str) -> str:
    """Give the path and query of a target that may name us in full."""
    if target.startswith("/"):
        return target
    _, mark, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if mark else target


def _connection(*, is_http_10: bool, keeps: bool) -> bytes:
    if not keeps:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if is_http_10 else b""


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
    loop = asyncio.get_running_loop()
    handshake_s = limits.HEAD_READ_S if ssl_context else None
    try:
        server = await loop.create_server(
            lambda: Connection(inbound),
            host,
            port,
            backlog=1_024,
            ssl=ssl_context,
            ssl_handshake_timeout=handshake_s,
        )
    except OSError as error:
        raise ConfigError([f"{host}:{port}: {error.strerror}"]) from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        inbound.tear()
        await server.wait_closed()

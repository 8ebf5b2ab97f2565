"""A connection to an engine: one request at a time, answers read by llhttp (httptools).

An answer is followed by callbacks, so that a piece of a stream costs no task and no queue.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.tls_engines import PLAIN, EngineTls
from kvatlas.router.arrival import Answer, Kind
from kvatlas.router.headers import Header
from kvatlas.router.request import Headers

_LINGERING: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine serves.

    Attributes:
        tls: how it is spoken to and trusted; None for plain HTTP.
        server_name: that its certificate must be for; None for the host.
        host_line: the header that names it.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    host_line: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "host_line", f"Host: {named}:{self.port}\r\n".encode())

    @classmethod
    def of(cls, url: str, tls: EngineTls = PLAIN) -> Target:
        """Read an address of the form http://host:port.

        Raises:
            ValueError: ours: https:// without a context would be sent in clear.
        """
        parts = urlsplit(url)
        context = tls.context
        if (parts.scheme == "https") != (context is not None):
            raise ValueError("TLS and https:// go together")
        return cls(parts.hostname or "", parts.port or 80, context, tls.server_name)


class Keeper(Protocol):
    """What keeps connections."""

    def release(self, connection: EngineConnection) -> None:
        """Keep one that is free."""

    def forget(self, connection: EngineConnection) -> None:
        """Drop one that is closed."""


class EngineConnection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: Keeper, target: Target) -> None:
        self._pool = pool
        self.target = target
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: list[Header] = []
        self._reason = b""
        self._head_bytes = 0
        self._is_in_head = self._is_paused = False
        self._ends_with_connection = False
        self._heard_s = 0.0
        self._idle_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._uses = 0
        self.free_since = 0.0
        self.is_closed = False

    # --- use ----------------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes, idle_s: float) -> Answer:
        """Send a request.

        Args:
            head: all of it.
            body: alike.
            idle_s: between two reads behind the first byte; then the engine counts as failed.
        """
        answer = Answer(self, self._loop.create_future())
        answer.is_reused = self._uses > 0
        self._uses += 1
        self._answer, self._idle_s = answer, idle_s
        self._head_bytes, self._is_in_head, self._ends_with_connection = 0, True, False
        if len(body) <= limits.SENT_TOGETHER_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return answer

    def pause(self, answer: Answer) -> None:
        """Read nothing more of an answer."""
        if answer is self._answer and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self, answer: Answer) -> None:
        """Read on."""
        if answer is self._answer and self._is_paused:
            self._is_paused = False
            self._heard_s = monotonic()
            self._transport.resume_reading()

    def give_up(self, answer: Answer) -> None:
        """Close, where an answer is still under way."""
        if answer is self._answer:
            self._answer = None
            self.close()

    def close(self) -> None:
        """Close."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()

    # --- what the transport calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._answer is None:
            # Nobody asked: what it belongs to cannot be told.
            self.close()
            return
        self._heard_s = monotonic()
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("protocol")
        else:
            if self._head_bytes > limits.ANSWER_HEAD_BYTES_MAX:
                # A head, extensions of chunks or trailers without an end.
                self._fail("protocol" if self._is_in_head else "broken")

    def eof_received(self) -> None:
        """Let the transport close."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        self.is_closed = True
        self._pool.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._ends_with_connection and exc is None:
            answer.complete()
        else:
            # Before the first byte of a body the client has seen nothing. Of TLS 1.3 we read behind
            # the handshake that our certificate is not liked.
            before: Kind = "tls" if isinstance(exc, ssl.SSLError) else "disconnected"
            answer.fail("broken" if answer.is_begun else before)

    # --- what the parser calls ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head; one that nobody asked for ends the connection."""
        self._headers, self._reason = [], b""
        if self._answer is None:
            self.close()

    def on_status(self, reason: bytes) -> None:
        """Take a piece of the reason."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one behind the body is dropped."""
        if self._is_in_head:
            self._headers.append((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        """Take the head, unless it only says that one will come."""
        status = self._parser.get_status_code()
        answer = self._answer
        if answer is None or 100 <= status < 200:
            if status == 101:
                raise ValueError
            return
        exact = sum(len(name) + len(value) + 4 for name, value in self._headers)
        if exact > limits.ANSWER_HEAD_BYTES_MAX:
            raise ValueError
        self._is_in_head = False
        answer.status, answer.reason = status, self._reason.decode("latin-1")
        headers = answer.headers = Headers(self._headers)
        answer.content_type = headers.get("content-type", "").partition(";")[0].strip()
        self._ends_with_connection = (
            headers.get("content-length") is None
            and headers.get("transfer-encoding") is None
            and status not in _LINGERING
        )

    def on_body(self, piece: bytes) -> None:
        """Pass a piece on."""
        answer = self._answer
        if answer is not None:
            if self._timer is None:
                self._wait_on()
            self._head_bytes = 0
            answer.feed(piece)

    def on_message_complete(self) -> None:
        """End an answer; the connection is free."""
        if self._is_in_head:
            return
        answer, self._answer = self._answer, None
        if answer is None:
            return  # given up, or never asked for: it is closed, and must not be used again
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        if self._parser.should_keep_alive() and not self._transport.get_write_buffer_size():
            self._pool.release(self)
        else:
            # An engine that answers early wants no more of the request.
            self.close()
        answer.complete()

    # --- time ---------------------------------------------------------------------------------

    def _wait_on(self) -> None:
        """Ring when nothing has come for too long; a timer that rings before goes on to then."""
        left_s = self._idle_s - (monotonic() - self._heard_s)
        if self._is_paused:
            # It is the client that is waited for.
            left_s = self._idle_s
        if left_s <= 0:
            self._timer = None
            self._fail("idle")
        else:
            self._timer = self._loop.call_later(left_s, self._wait_on)

    def _fail(self, kind: Kind) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None:
            answer.fail(kind)

"""Bytes to an engine and back, as they come.

A failure is a status before the first byte, and a visibly torn answer after it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import (
    UpstreamConnect,
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
)
from kvatlas.common.metrics import HistogramChild
from kvatlas.common.settings import RouterSettings
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.engine_client import RANK_HEADER
from kvatlas.router.headers import NOTHING, Header, to_client, to_engine
from kvatlas.router.keys import KEY_HEADERS
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.usage import AnswerReader

_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT_END_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as the engine gets it.

    Attributes:
        path: with the query as received.
        headers: the client's, as received.
        ours: headers that the router sets.
        body: the client's, as `proof` prepared it for this engine.
    """

    path: str
    headers: list[Header]
    ours: list[Header]
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer reaches the client.

    Attributes:
        headers: that the router sets.
        reader: sees every piece and may hold some back.
        first_byte: called when the engine sends the first piece.
        torn_event: what a stream ends with whose engine failed.
        gaps: what is told the seconds between two pieces of a stream; None for other answers.
    """

    headers: list[Header]
    reader: AnswerReader
    first_byte: Callable[[], None]
    torn_event: bytes
    gaps: HistogramChild | None = None


class Torn(ConnectionResetError):
    """The answer was broken off after its first byte; the client's connection is closed."""


class Proxy:
    """Send requests to engines and stream their answers."""

    def __init__(self, settings: RouterSettings, metrics: RouterMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        # Keys that we know are ours: an engine has no business with them.
        self._kept_back = KEY_HEADERS if settings.api_keys_file else NOTHING
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=limits.UPSTREAM_KEEPALIVE_S, ttl_dns_cache=10
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=limits.HEADER_BYTES_MAX,
            max_field_size=limits.HEADER_BYTES_MAX,
        )

    async def aclose(self) -> None:
        """Close all connections to engines."""
        await self.session.close()

    async def send(
        self, stack: AsyncExitStack, endpoint: Endpoint, outgoing: Outgoing
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of the answer.

        Args:
            stack: what the answer lives in.
            endpoint: whom to send it to.
            outgoing: the request.

        Raises:
            UpstreamConnect: it was not reached, or closed before it answered. Worth a retry.
            UpstreamProtocol: it answered something that is not HTTP.
            UpstreamTimeout: it did not answer in time.
        """
        ours = list(outgoing.ours)
        if endpoint.asked_rank is not None:
            ours.append((RANK_HEADER, str(endpoint.asked_rank)))
        if endpoint.api_key:
            ours.append(("Authorization", f"Bearer {endpoint.api_key}"))
        request = self.session.post(
            endpoint.url + outgoing.path,
            data=outgoing.body,
            headers=to_engine(outgoing.headers, ours, self._kept_back),
            allow_redirects=False,
            ssl=endpoint.tls.ssl,
            server_hostname=endpoint.tls.server_name,
        )
        try:
            async with asyncio.timeout(self._settings.first_byte_s):
                return await stack.enter_async_context(request)
        except aiohttp.ServerTimeoutError as error:
            raise self._failed(endpoint, "connect_timeout", UpstreamConnect) from error
        except TimeoutError as error:
            raise self._failed(endpoint, "first_byte_timeout", UpstreamTimeout) from error
        except aiohttp.ClientSSLError as error:
            raise self._failed(endpoint, "tls", UpstreamConnect) from error
        except aiohttp.ClientConnectorError as error:
            # A connection that was made and is broken off in its handshake.
            is_tls = isinstance(error.os_error, ConnectionResetError)
            kind = "tls" if is_tls else "connect"
            raise self._failed(endpoint, kind, UpstreamConnect) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # Of TLS 1.3 a client reads behind its handshake that its certificate is not liked.
            kind = "tls" if isinstance(error.__cause__, ssl.SSLError) else "disconnected"
            raise self._failed(endpoint, kind, UpstreamConnect) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise self._failed(endpoint, "protocol", UpstreamProtocol) from error

    async def relay(
        self,
        request: web.Request,
        answer: aiohttp.ClientResponse,
        endpoint: Endpoint,
        delivery: Delivery,
    ) -> web.StreamResponse:
        """Pass an answer on as it comes.

        Engines send the head of a stream before they compute the prompt, so the client's head
        waits for the first piece of the body: until then an engine that fails costs nothing.

        Raises:
            UpstreamConnect, UpstreamTimeout: the engine failed before the first byte.
            Torn: it failed after it.
        """
        piece = await self._first_piece(answer, endpoint)
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in to_client(answer.headers.items(), delivery.headers):
            response.headers.add(name, value)
        reader = delivery.reader
        if reader.takes_out:
            response.headers.popall("Content-Length", None)
        await response.prepare(request)
        delivery.first_byte()
        tail, gaps, came_s = b"", delivery.gaps, monotonic()
        while piece:
            tail = await _pass_on(response, reader.feed(piece), tail)
            try:
                piece = await self._next_piece(answer, endpoint)
                if gaps is not None and piece:
                    now_s = monotonic()
                    gaps.observe(now_s - came_s)
                    came_s = now_s
            except Torn:
                tail = await _pass_on(response, reader.end(), tail)
                is_stream = answer.content_type == "text/event-stream"
                # Inside of an event a message of ours would be read as the rest of it.
                if is_stream and tail.endswith(_EVENT_ENDS):
                    await response.write(delivery.torn_event)
                raise
        await _pass_on(response, reader.end(), tail)
        await response.write_eof()
        return response

    async def _next_piece(self, answer: aiohttp.ClientResponse, endpoint: Endpoint) -> bytes:
        """Read on; faults of the client's connection, which look alike, are not met here."""
        try:
            async with asyncio.timeout(self._settings.stream_idle_s):
                return await answer.content.readany()
        except TimeoutError:
            self._metrics.upstream_errors.labels(endpoint.name, "idle").inc()
        except (aiohttp.ClientError, OSError):
            self._metrics.upstream_errors.labels(endpoint.name, "broken").inc()
        raise Torn

    async def _first_piece(self, answer: aiohttp.ClientResponse, endpoint: Endpoint) -> bytes:
        try:
            async with asyncio.timeout(self._settings.first_byte_s):
                return await answer.content.readany()
        except TimeoutError as error:
            raise self._failed(endpoint, "first_byte_timeout", UpstreamTimeout) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed(endpoint, "disconnected", UpstreamConnect) from error

    def _failed(self, endpoint: Endpoint, kind: str, error: type[UpstreamError]) -> UpstreamError:
        self._metrics.upstream_errors.labels(endpoint.name, kind).inc()
        endpoint.failures += 1
        return error("the engine could not be reached, or did not answer")


async def _pass_on(response: web.StreamResponse, piece: bytes, tail: bytes) -> bytes:
    """Write a piece, if there is any; give the last bytes of all that was written."""
    if not piece:
        return tail
    await response.write(piece)
    return (tail + piece[-_EVENT_END_BYTES:])[-_EVENT_END_BYTES:]

"""Bytes to an engine and back, as they come.

A failure is a status before the first byte, and a visibly torn answer after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvatlas.common.clock import monotonic
from kvatlas.common.errors import (
    UpstreamConnect,
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamUnreached,
)
from kvatlas.common.records import record
from kvatlas.common.settings import RouterSettings
from kvatlas.router.arrival import Answer, EngineFailed, Kind
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.engine_client import RANK_HEADER
from kvatlas.router.engine_pool import EnginePool
from kvatlas.router.first_token import Gaps
from kvatlas.router.headers import NOTHING, Header, to_client, to_engine
from kvatlas.router.health import Health
from kvatlas.router.keys import KEY_HEADERS
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.outbound import Target
from kvatlas.router.request import Outflow, Request, Response
from kvatlas.router.trusted import TrustedProxies
from kvatlas.router.usage import AnswerReader

EVENT_STREAM: Final = "text/event-stream"
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT_END_BYTES: Final = 4
SERVER_ERRORS: Final = frozenset(range(500, 600)) - {501}
"""Of which an engine's health is judged; one that lacks what was asked for is well."""
_ERRORS: Final[dict[Kind, type[UpstreamError]]] = {
    "connect_timeout": UpstreamUnreached,
    "protocol": UpstreamProtocol,
    "first_byte_timeout": UpstreamTimeout,
}


@record
class Outgoing:
    """A request as the engine gets it.

    Attributes:
        path: with the query as received.
        headers: the client's, as received.
        ours: headers that the router sets.
        body: the client's, as `proof` prepared it for this engine.
        peer: address that the request came from.
    """

    path: str
    headers: list[Header]
    ours: list[Header]
    body: bytes
    peer: str | None = None


@record
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
    gaps: Gaps | None = None


def endpoint_headers(endpoint: Endpoint) -> list[Header]:
    """Give the headers that an endpoint asks for: its rank, and its key."""
    headers = []
    if endpoint.asked_rank is not None:
        headers.append((RANK_HEADER, str(endpoint.asked_rank)))
    if endpoint.api_key:
        headers.append(("Authorization", f"Bearer {endpoint.api_key}"))
    return headers


class Torn(ConnectionResetError):
    """The answer was broken off after its first byte; the client's connection is closed."""


class Proxy:
    """Send requests to engines and pass on their answers.

    Args:
        settings: limits of time.
        metrics: told of failures.
        pool: connections to engines.
        health: told how requests end.
    """

    def __init__(
        self, settings: RouterSettings, metrics: RouterMetrics, pool: EnginePool, health: Health
    ) -> None:
        self._health = health
        self._limits_s = (settings.first_byte_s, settings.stream_idle_s)
        self._metrics = metrics
        self._pool = pool
        self._targets: dict[str, Target] = {}
        self._trusted = TrustedProxies(settings.trusted_proxies)
        # Keys that we know are ours: an engine has no business with them.
        self._kept_back = KEY_HEADERS if settings.api_keys_file else NOTHING

    async def send(self, endpoint: Endpoint, outgoing: Outgoing) -> Answer:
        """Send a request and wait for the first byte of the answer's body.

        Engines send the head of a stream before they compute the prompt: until the first byte of
        the body one that fails costs the client nothing.

        Raises:
            UpstreamConnect: it was not reached, or closed before it answered. Worth a retry.
            UpstreamProtocol: it answered something that is not HTTP.
            UpstreamTimeout: it did not answer in time.
        """
        ours = [*outgoing.ours, *endpoint_headers(endpoint)]
        target = self._target(endpoint)
        is_trusted = self._trusted.holds(outgoing.peer)
        headers = to_engine(outgoing.headers, ours, self._kept_back, is_trusted=is_trusted)
        told = "".join([f"{name}: {value}\r\n" for name, value in headers])
        head = b"".join((
            f"POST {outgoing.path} HTTP/1.1\r\n".encode(),
            target.host_line,
            told.encode("utf-8", "surrogateescape"),
            b"Content-Length: %d\r\n\r\n" % len(outgoing.body),
        ))  # fmt: skip
        try:
            answer = await self._pool.send(target, (head, outgoing.body), self._limits_s)
        except EngineFailed as failed:
            self._metrics.upstream_errors.labels(endpoint.name, failed.kind).inc()
            self._health.failed(endpoint, failed.kind, is_reused=failed.is_reused)
            error = _ERRORS.get(failed.kind, UpstreamConnect)
            raise error("the engine could not be reached, or did not answer") from None
        if endpoint.standing.unanswered:
            self._health.answered(endpoint)
        if answer.status in SERVER_ERRORS:
            self._health.refused(endpoint)
        return answer

    async def relay(
        self, request: Request, answer: Answer, endpoint: Endpoint, delivery: Delivery
    ) -> Response | None:
        """Pass an answer on as it comes; give it where it has come in whole.

        Raises:
            Torn: the engine failed after the first byte.
        """
        headers = to_client(answer.headers.received, delivery.headers)
        reader = delivery.reader
        is_stream = answer.content_type == EVENT_STREAM
        if answer.is_whole and not is_stream:
            body = reader.feed(answer.take())
            body += reader.end()
            if answer.status not in SERVER_ERRORS:
                endpoint.standing.succeeded()
            response = Response(answer.status, body, _without_length(headers), answer.reason)
            response.then.append(delivery.first_byte)
            return response
        delivery.first_byte()
        if reader.takes_out:
            headers = _without_length(headers)
        relay = _Relay(request.outflow, delivery, is_stream=is_stream)
        request.outflow.begin(answer.status, answer.reason, headers, answer)
        answer.attach(relay)
        try:
            await relay.done
        except EngineFailed as failed:
            self._metrics.upstream_errors.labels(endpoint.name, failed.kind).inc()
            self._health.failed(endpoint, failed.kind)
            raise Torn from None
        if answer.status not in SERVER_ERRORS:
            endpoint.standing.succeeded()
        return None

    def _target(self, endpoint: Endpoint) -> Target:
        target = self._targets.get(endpoint.url)
        if target is None or target.tls is not endpoint.tls.context:
            target = self._targets[endpoint.url] = Target.of(endpoint.url, endpoint.tls)
        return target


class _Relay:
    """What an answer passes through on its way to the client, without a task of its own."""

    __slots__ = ("_came_s", "_gaps", "_is_stream", "_outflow", "_reader", "_tail", "_torn", "done")

    def __init__(self, outflow: Outflow, delivery: Delivery, *, is_stream: bool) -> None:
        self._outflow = outflow
        self._reader = delivery.reader
        self._torn = delivery.torn_event
        self._gaps = delivery.gaps
        self._is_stream = is_stream
        self._came_s: float | None = None
        self._tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data(self, piece: bytes) -> None:
        """Pass a piece on, and what it lets go of what was held back."""
        if self._gaps is not None:
            now_s = monotonic()
            if self._came_s is not None:
                self._gaps.observe(now_s - self._came_s)
            self._came_s = now_s
        self._pass_on(self._reader.feed(piece))

    def ended(self) -> None:
        """End the client's answer."""
        self._pass_on(self._reader.end())
        self._outflow.end()
        if not self.done.done():
            self.done.set_result(None)

    def failed(self, kind: Kind) -> None:
        """Tear the client's answer."""
        self._pass_on(self._reader.end())
        # Inside of an event a message of ours would be read as the rest of it.
        if self._is_stream and self._tail.endswith(_EVENT_ENDS):
            self._outflow.write(self._torn)
        self._outflow.tear()
        if not self.done.done():
            self.done.set_exception(EngineFailed(kind))

    def _pass_on(self, piece: bytes) -> None:
        if piece:
            self._outflow.write(piece)
            self._tail = (self._tail + piece[-_EVENT_END_BYTES:])[-_EVENT_END_BYTES:]


def _without_length(headers: list[Header]) -> list[Header]:
    return [each for each in headers if each[0].lower() != "content-length"]

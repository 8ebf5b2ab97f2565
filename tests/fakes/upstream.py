"""An engine's HTTP side on a raw socket, with every way to fail."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

METRICS = b"""vllm:num_requests_running{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
"""

Behaviour = Callable[["Exchange"], Awaitable[None]]


@dataclass(slots=True)
class Exchange:
    """One request as it arrived, and the way to answer it."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Write pieces, each flushed."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def chunk(self, piece: bytes) -> None:
        """Write a chunk of a chunked body."""
        await self.send(b"%x\r\n%s\r\n" % (len(piece), piece))

    def reset(self) -> None:
        """Break the connection off, with a reset instead of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass(slots=True)
class Upstream:
    """An engine that does as it is told.

    Attributes:
        behaviour: how POSTs are answered.
        requests: POSTs that arrived.
        closed_early: POSTs whose client left before the answer was complete.
        metrics_status: how GETs are answered.
        has_tokenize: whether the behaviour answers `/tokenize`; else it is absent, and what the
            router's probes ask is not counted.
        metrics: with what.
        hangs: whether its page of metrics never comes.
        models: with what instead where they are for `/v1/models`; None for the same.
    """

    behaviour: Behaviour
    port: int = 0
    requests: list[Exchange] = field(default_factory=list)
    closed_early: int = 0
    metrics_status: str = "200 OK"
    has_tokenize: bool = False
    metrics: bytes = METRICS
    models: bytes | None = None
    hangs: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if head.startswith(b"GET"):
            if self.hangs and head.startswith(b"GET /metrics "):
                await reader.read()  # until who asked goes
                raise ConnectionError
            status = self.metrics_status.encode()
            asks_models = head.startswith(b"GET /v1/models ")
            page = (self.models if asks_models else None) or self.metrics
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(page)) + page)
            await writer.drain()
            return
        if head.startswith(b"POST /tokenize ") and not self.has_tokenize:
            nothing = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
            writer.write(b"HTTP/1.1 404 Not Found\r\n" + nothing)
            await writer.drain()
            writer.close()
            return
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        exchange = Exchange(head, await reader.readexactly(length), reader, writer)
        self.requests.append(exchange)
        try:
            await self.behaviour(exchange)
        except ConnectionError:
            self.closed_early += 1
            raise


@asynccontextmanager
async def upstream(
    behaviour: Behaviour, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Run such an engine until the context ends."""
    made = Upstream(behaviour)
    server = await asyncio.start_server(made.serve, "127.0.0.1", port, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def plain(body: bytes, status: str = "200 OK", *headers: bytes) -> Behaviour:
    """Answer with a body of known length."""

    async def behave(exchange: Exchange) -> None:
        lines = [f"HTTP/1.1 {status}".encode(), b"Content-Type: application/json", *headers]
        lines.append(b"Content-Length: %d" % len(body))
        await exchange.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    return behave


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

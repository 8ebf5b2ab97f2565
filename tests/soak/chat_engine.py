"""An engine that costs little: it answers from memory, and tells of the blocks that it holds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import cast

from tests.fakes.publisher import FakePublisher, stored

BLOCK_SIZE = 16
CHUNKS = 40
CHUNK_S = 0.025
METRICS = (
    b'vllm:num_requests_running{engine="0",model_name="m"} 0.0\n'
    b'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0\n'
    b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.1\n'
    b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100000"} 1.0\n'
)
USAGE = {"prompt_tokens": 100, "completion_tokens": CHUNKS, "total_tokens": 100 + CHUNKS}
ANSWER = json.dumps({"id": "a", "choices": [{"index": 0}], "usage": USAGE}).encode()
CHUNK = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@dataclass
class ChatEngine:
    """One of them, on a port of its own.

    Attributes:
        prompts: token ids of the prompts that it holds, whole blocks of each.
        answered: requests.
    """

    publisher: FakePublisher
    prompts: list[list[int]]
    answered: int = 0
    port: int = 0
    connections: set[_Connection] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Serve, and tell what is held."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        await self.tell()

    async def tell(self) -> None:
        """Announce all that is held."""
        number = 1
        for ids in self.prompts:
            count = len(ids) // BLOCK_SIZE
            hashes = list(range(number, number + count))
            number += count
            whole = ids[: count * BLOCK_SIZE]
            await self.publisher.publish(stored(hashes, whole, None, BLOCK_SIZE))

    async def restart(self) -> None:
        """Die under all that it answers, and come back with an empty cache, which fills again."""
        for connection in list(self.connections):
            connection.break_off()
        await self.publisher.restart()
        await self.tell()

    async def stop(self) -> None:
        """End."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.break_off()


class _Connection(asyncio.Protocol):
    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._engine.connections.discard(self)

    def break_off(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        _, _, after = head.partition(b"content-length:")
        length = int(after.split(b"\r\n", 1)[0] or 0)
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/chat/completions":
            self._engine.answered += 1
            if b'"stream": true' in body:
                self._transport.write(STREAM_HEAD)
                self._left = CHUNKS
                self._next()
            else:
                self._whole(ANSWER, b"application/json")
        elif path == b"/metrics":
            self._whole(METRICS, b"text/plain")
        elif path == b"/v1/models":
            self._whole(b'{"object":"list","data":[{"id":"m"}]}', b"application/json")
        else:
            self._whole(b"{}", b"application/json", b"404 Not Found")

    def _whole(self, body: bytes, kind: bytes, status: bytes = b"200 OK") -> None:
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, kind, len(body), body)
        )

    def _next(self) -> None:
        if self._transport.is_closing():
            return
        if self._left:
            self._left -= 1
            self._chunk(CHUNK)
            asyncio.get_running_loop().call_later(CHUNK_S, self._next)
        else:
            self._chunk(DONE)
            self._transport.write(b"0\r\n\r\n")

    def _chunk(self, piece: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

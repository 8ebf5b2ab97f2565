"""Clients of HTTP/2 for tests of our server: a strict one, and one that sends what it likes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from struct import Struct
from typing import Any, NamedTuple

import hpack
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

PATIENCE_S = 10.0
"""For what must come; a busy machine may be slow."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = Struct(">HBBBI")


def call_head(path: str, **changed: str) -> list[tuple[str, str]]:
    """Give the head of a call."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "picker",
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    fields.update({name.replace("_", "-").replace("--", ":"): changed[name] for name in changed})
    return list(fields.items())


def message(body: bytes) -> bytes:
    """Put gRPC's prefix before a message."""
    return b"\0" + len(body).to_bytes(4, "big") + body


class StrictPeer:
    """A client that breaks no rule, and takes none that is broken.

    Attributes:
        h2: what it knows.
        data: received, by stream.
        fields: of heads and trailers, by stream.
        ended: streams that the server ended.
        resets: codes, by stream.
        order: of the streams whose data came.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.h2: Any = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.fields: dict[int, dict[str, str]] = defaultdict(dict)
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.order: list[int] = []
        self.acknowledges = True

    def call(self, path: str, *messages: bytes, ends: bool = True) -> int:
        """Begin a call; what is said of it leaves with `flush`."""
        stream: int = self.h2.get_next_available_stream_id()
        body = b"".join(map(message, messages))
        self.h2.send_headers(stream, call_head(path), end_stream=ends and not body)
        if body:
            self.h2.send_data(stream, body, end_stream=ends)
        return stream

    def flush(self) -> None:
        """Send what is to be sent."""
        self._writer.write(self.h2.data_to_send())

    async def until(self, condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Read on until something holds."""
        self.flush()
        async with asyncio.timeout(within_s):
            while not condition():
                data = await self._reader.read(65_536)
                assert data, "the server closed"
                for event in self.h2.receive_data(data):
                    self._take(event)
                self.flush()

    def _take(self, event: object) -> None:
        if isinstance(event, DataReceived):
            stream: int = event.stream_id
            self.data[stream] += event.data
            self.order.append(stream)
            if self.acknowledges:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            self.fields[event.stream_id].update(
                {str(name): str(value) for name, value in event.headers}
            )
        elif isinstance(event, StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        else:
            assert not isinstance(event, ConnectionTerminated), event.additional_data


class Seen(NamedTuple):
    """A frame that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class RawPeer:
    """A client that sends any bytes, and notes what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._rest = b""
        self.seen: list[Seen] = []
        self.fields: dict[int, dict[str, str]] = defaultdict(dict)
        self.is_closed = False

    def send(self, *frames: bytes) -> None:
        """Send them, whole."""
        self.writer.write(b"".join(frames))

    def head(self, stream: int, path: str, **changed: str) -> bytes:
        """Write the head of a call."""
        block: bytes = self._encoder.encode(call_head(path, **changed))
        return frame(1, 0x4, stream, block)

    async def until(self, condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Read on until something holds, or the server closes."""
        async with asyncio.timeout(within_s):
            while not condition() and not self.is_closed:
                await self._read()

    async def closed(self) -> None:
        """Read until the server closes."""
        await self.until(lambda: False)

    async def _read(self) -> None:
        try:
            data = await self._reader.read(65_536)
        except ConnectionError:
            data = b""
        self.is_closed = not data
        self._rest += data
        while len(self._rest) >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._rest)
            end = 9 + (high << 8 | low)
            if end > len(self._rest):
                break
            self.seen.append(Seen(kind, flags, stream, self._rest[9:end]))
            self._rest = self._rest[end:]
            if kind == 1:
                fields = self._decoder.decode(self.seen[-1].payload)
                self.fields[stream].update({str(name): str(value) for name, value in fields})

    def of(self, kind: int) -> list[Seen]:
        """Give the frames of a kind."""
        return [each for each in self.seen if each.kind == kind]

    def data(self, stream: int) -> bytes:
        """Give the data of a stream."""
        return b"".join(each.payload for each in self.of(0) if each.stream == stream)

    def has_ended(self, stream: int) -> bool:
        """Tell whether the server ended a stream."""
        return any(each.stream == stream and each.flags & 1 for each in self.of(1))

    def reset_codes(self) -> dict[int, int]:
        """Give why streams were broken off."""
        return {each.stream: int.from_bytes(each.payload, "big") for each in self.of(3)}

    def goaways(self) -> list[tuple[int, int]]:
        """Give the last stream and the code of each GOAWAY."""
        return [
            (int.from_bytes(each.payload[:4], "big"), int.from_bytes(each.payload[4:8], "big"))
            for each in self.of(7)
        ]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame, of whatever sense."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """Write settings: `_4=1` sets the fourth."""
    pairs = [(int(name[1:]), value) for name, value in values.items()]
    return frame(4, 0, 0, b"".join(Struct(">HI").pack(*each) for each in pairs))


@asynccontextmanager
async def strict_peer(port: int, **told: int) -> AsyncIterator[StrictPeer]:
    """Connect a strict client; `told` are settings, `_4=1` the fourth."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = StrictPeer(reader, writer)
    peer.h2.initiate_connection()
    if told:
        peer.h2.update_settings({int(name[1:]): value for name, value in told.items()})
    peer.flush()
    try:
        yield peer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_peer(port: int, greeting: bytes | None = None) -> AsyncIterator[RawPeer]:
    """Connect a client that is bound by nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = RawPeer(reader, writer)
    peer.send(PREFACE + settings() if greeting is None else greeting)
    try:
        yield peer
    finally:
        with suppress(ConnectionError):
            writer.transport.abort()

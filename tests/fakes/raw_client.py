"""A client on a raw socket: it sends bytes exactly as they are, and reads answers strictly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

CHAT = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
ANSWER_S = 10.0


@dataclass(frozen=True)
class Reply:
    """An answer as it came.

    Attributes:
        headers: by name in lower case; of one that is there twice the last.
        pieces: chunks of the body, each as it was framed; one where it has a length.
    """

    status: int
    headers: dict[str, str]
    pieces: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """Give the body."""
        return b"".join(self.pieces)

    @property
    def error(self) -> dict[str, Any]:
        """Give an error, which must have the shape of OpenAI's."""
        told = json.loads(self.body)
        assert set(told) == {"error"}
        assert set(told["error"]) == {"message", "type", "param", "code"}
        return dict(told["error"])


@dataclass
class Raw:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece in a write of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a status line and headers."""
        async with asyncio.timeout(ANSWER_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = raw[:-4].split(b"\r\n")
        version, status, _ = line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        pairs = [each.decode().split(": ", 1) for each in lines]
        return int(status), {name.lower(): value for name, value in pairs}

    async def chunk(self) -> bytes:
        """Read a chunk; an empty one is the last."""
        async with asyncio.timeout(ANSWER_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            piece = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        return piece

    async def reply(self, *, to_head: bool = False) -> Reply:
        """Read an answer.

        Args:
            to_head: whether it answers a HEAD, and has no body.
        """
        status, headers = await self.head()
        while status == 100:
            status, headers = await self.head()
        if to_head:
            return Reply(status, headers, ())
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            pieces = []
            while piece := await self.chunk():
                pieces.append(piece)
            return Reply(status, headers, tuple(pieces))
        async with asyncio.timeout(ANSWER_S):
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Reply(status, headers, (body,))

    async def ended(self, limit_s: float = ANSWER_S) -> bytes:
        """Read until the router closes; give what came."""
        rest = b""
        try:
            async with asyncio.timeout(limit_s):
                while piece := await self.reader.read(65_536):
                    rest += piece
        except ConnectionError:
            pass
        return rest

    def leave(self) -> None:
        """Break off."""
        self.writer.transport.abort()


@asynccontextmanager
async def raw(port: int, host: str = "127.0.0.1") -> AsyncIterator[Raw]:
    """Open a connection until the context ends."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def post(
    body: bytes | dict[str, Any] | None = None,
    *headers: str,
    path: str = "/v1/chat/completions",
    framing: str | None = None,
) -> bytes:
    """Write a POST.

    Args:
        body: a small chat where it is left out.
        headers: lines.
        path: the target.
        framing: a line instead of the length.
    """
    content = CHAT if body is None else body
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = f"Content-Length: {len(data)}" if framing is None else framing
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, *([length] if length else [])]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + data


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """Write a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def chunked(*pieces: bytes) -> bytes:
    """Write a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"

"""A client that writes bytes, not requests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from tests.fakes.door import chat

BODY = json.dumps(chat("hi")).encode()
LENGTH = b"Content-Length: %d" % len(BODY)


def post(*lines: bytes, target: bytes = b"/v1/chat/completions", body: bytes = BODY) -> bytes:
    """Write a POST with these header lines."""
    return b"\r\n".join((b"POST %b HTTP/1.1" % target, *lines, b"", body))


async def exchange(port: int, sent: bytes, limit_s: float = 5.0) -> bytes:
    """Send bytes on a connection of their own; give all that comes until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), limit_s)
    finally:
        writer.close()


@dataclass
class Kept:
    """A connection that is kept open: what was said on it, and whether it still is open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Kept:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, body: bytes = BODY) -> None:
        """Send a chat."""
        self.writer.write(post(b"Host: h", b"Content-Length: %d" % len(body), body=body))

    async def answer(self) -> tuple[bytes, bytes]:
        """Read one answer: its head, in lower case, and its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            return head, await self.reader.readuntil(b"\r\n0\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def ask(self) -> tuple[bytes, bytes]:
        """Send a chat and read its answer."""
        self.send()
        return await self.answer()

    async def is_closed(self, within_s: float) -> bool:
        """Tell whether the other side closes it, having said nothing more."""
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return False

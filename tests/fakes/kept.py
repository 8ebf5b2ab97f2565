"""A client that keeps its connection open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tests.fakes.door import chat
from tests.fakes.raw_client import post


@dataclass
class Kept:
    """A connection that is kept open: what was said on it, and whether it still is open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Kept:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, body: bytes | dict[str, Any] | None = None) -> None:
        """Send a chat; a small one where it is left out."""
        self.writer.write(post(chat("hi") if body is None else body))

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

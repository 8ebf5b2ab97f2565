"""A TCP proxy that does harm on demand: between kvatlas and Redis, or an engine's ZMQ sockets.

Faults are attributes that may change at any time; they hold for connections that are there and
for those to come. No rights are needed, and nothing of the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

READ_BYTES = 65_536


@dataclass(eq=False)
class FaultProxy:
    """Stand before one address.

    Attributes:
        target: host and port of what is behind.
        delay_s: by which what the server says is later.
        blackhole: nothing gets through, in either direction, and nobody is told.
        refuses: connections to come are broken off at once, before a byte.
        reset_after: bytes of the server's that still get through; then connections are reset.
        slice_bytes: most that is passed on in one piece.
        port: where it listens.
        passed: bytes of the server's that got through.
        accepted: connections that came.
    """

    target: tuple[str, int]
    delay_s: float = 0.0
    blackhole: bool = False
    refuses: bool = False
    reset_after: int | None = None
    slice_bytes: int | None = None
    port: int = 0
    passed: int = 0
    accepted: int = 0
    _lives: int = 0
    _links: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Give host:port."""
        return f"127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Let everything through again."""
        self.delay_s, self.blackhole, self.refuses = 0.0, False, False
        self.reset_after = self.slice_bytes = None

    def lose(self) -> None:
        """Let nothing more through on the connections that are there, and tell nobody."""
        self._lives += 1

    def cut(self) -> None:
        """Reset every connection that is there."""
        for writer in self._links:
            writer.transport.abort()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection."""
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = None
        try:
            if self.refuses:
                return
            far, other = await asyncio.open_connection(*self.target)
            self._links |= {writer, other}
            # The one that ends first ends the other.
            pumps = [
                asyncio.ensure_future(self._pump(reader, other, from_server=False)),
                asyncio.ensure_future(self._pump(far, writer, from_server=True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # nobody is behind: the client sees its connection end
        finally:
            for link in (writer, other):
                if link is not None:
                    self._links.discard(link)
                    link.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool
    ) -> None:
        life = self._lives
        while data := await reader.read(self.slice_bytes or READ_BYTES):
            if from_server and self.delay_s:
                await asyncio.sleep(self.delay_s)
            while self.blackhole or life != self._lives:  # noqa: ASYNC110 - a fault is a state, not an event
                await asyncio.sleep(0.01)
            if from_server and self.reset_after is not None:
                data, left = data[: self.reset_after], self.reset_after - len(data)
                self.reset_after = max(0, left)
                if left <= 0:
                    writer.write(data)
                    return
            writer.write(data)
            self.passed += len(data) if from_server else 0
            await writer.drain()


@asynccontextmanager
async def fault_proxy(host: str, port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy before an address until the context ends."""
    proxy = FaultProxy((host, port))
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy._tasks:
            task.cancel()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)

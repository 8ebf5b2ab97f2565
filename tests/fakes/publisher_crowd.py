"""Many publishers in one process of their own, which lose all their connections at once.

    python -m tests.fakes.publisher_crowd COUNT

It writes the addresses, as JSON, and then closes and opens all sockets for each line that it reads.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from kvatlas.cli.bound import bound_command
from tests.fakes.publisher import FakePublisher, stored

BATCHES = 3
LINE_BYTES_MAX = 2**20


class Crowd:
    """The process as a test sees it.

    Attributes:
        sources: addresses of events and of replays, per publisher.
    """

    def __init__(self, process: asyncio.subprocess.Process, sources: list[list[str]]) -> None:
        self._process = process
        self.sources = sources

    async def cut(self) -> None:
        """Have all connections lost; all are accepted again when this returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"cut\n")
        await self._process.stdout.readline()


@asynccontextmanager
async def publisher_crowd(count: int) -> AsyncIterator[Crowd]:
    """Run such a process until the context ends."""
    line = [sys.executable, "-m", "tests.fakes.publisher_crowd", str(count)]
    process = await asyncio.create_subprocess_exec(
        *bound_command(line),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        limit=LINE_BYTES_MAX,
    )
    try:
        assert process.stdout is not None
        yield Crowd(process, json.loads(await process.stdout.readline()))
    finally:
        process.kill()
        await process.communicate()


async def _serve(count: int) -> None:
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(FakePublisher()) for _ in range(count)]
        for number, publisher in enumerate(crowd):
            for seq in range(BATCHES):
                publisher.record(stored([seq + 1], [number, seq, 0, 0]))
        print(json.dumps([[one.events, one.replay] for one in crowd]), flush=True)  # noqa: T201
        while await asyncio.to_thread(sys.stdin.readline):
            for publisher in crowd:
                publisher.close()
            for publisher in crowd:
                await publisher.open()
            print("cut", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

"""An engine's event side as a process of its own, which signals can stop, freeze and kill.

    python -m tests.fakes.publisher_process EVENTS REPLAY QUEUED KEPT

It takes one order per line on its standard input (msgpack, hex) and answers each where an answer
is wanted, so that a test knows what has been sent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgpack

from kvatlas.cli.bound import bound_command
from tests.fakes.publisher import FakePublisher

ANY_PORT = "tcp://127.0.0.1:*"
LINE_BYTES_MAX = 2**26
KEPT_MAX = 10**9


class PublisherProcess(FakePublisher):
    """One publisher in another process; what it is told is sent in order."""

    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Give the process id."""
        assert self._process is not None
        return self._process.pid

    async def open(self) -> None:
        """Start the process, again after `die` at the same addresses and with nothing known."""
        line = [sys.executable, "-m", "tests.fakes.publisher_process"]
        addresses = [self.events or ANY_PORT, self.replay or ANY_PORT]
        bounds = [str(self.queue_max), str(self.replay_max or KEPT_MAX)]
        self._process = await asyncio.create_subprocess_exec(
            *bound_command([*line, *addresses, *bounds]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES_MAX,
        )
        # What a frozen one is told waits here.
        assert self._process.stdin is not None
        self._process.stdin.transport.set_write_buffer_limits(LINE_BYTES_MAX)
        self.events, self.replay = await self.call("addresses")
        self.next_seq = 0

    async def die(self) -> None:
        """Kill it with -9, frozen or not."""
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None

    async def end(self) -> None:
        """Go away for good."""
        await self.die()

    async def restart(self) -> None:
        """Be killed and come back with nothing remembered."""
        await self.die()
        await self.open()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def publish(self, *events: Any, payload: bytes | None = None) -> int:
        """Send a batch, or a payload of any kind; return its sequence."""
        return await self._told("publish", events, payload)

    async def lose(self, *events: Any) -> int:
        """Put a batch into the replay log without sending it."""
        return await self._told("record", events, None)

    async def _told(self, what: str, events: tuple[Any, ...], payload: bytes | None) -> int:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        await self.tell(what, list(events), payload)
        return seq

    async def tell(self, what: str, *more: Any) -> None:
        """Give an order that nobody answers."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(msgpack.packb([what, *more]).hex().encode() + b"\n")
        await self._process.stdin.drain()

    async def call(self, what: str, *more: Any) -> Any:
        """Give an order and wait for the answer; all before it has been done then."""
        await self.tell(what, *more)
        assert self._process is not None
        assert self._process.stdout is not None
        return msgpack.unpackb(bytes.fromhex((await self._process.stdout.readline()).decode()))


@asynccontextmanager
async def publisher_processes(count: int) -> AsyncIterator[list[PublisherProcess]]:
    """Run some until the context ends."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(PublisherProcess()) for _ in range(count)]


async def _serve(events: str, replay: str, queue_max: str, replay_max: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with FakePublisher(
        events=events, replay=replay, queue_max=int(queue_max), replay_max=int(replay_max)
    ) as publisher:
        while line := await reader.readline():
            what, *more = msgpack.unpackb(bytes.fromhex(line.decode()))
            answer = await _obey(publisher, what, more)
            if answer is not None:
                sys.stdout.write(msgpack.packb(answer).hex() + "\n")
                sys.stdout.flush()


async def _obey(publisher: FakePublisher, what: str, more: list[Any]) -> Any:
    if what == "publish":
        await publisher.publish(*more[0], payload=more[1])
    elif what == "record":
        publisher.record(*more[0])
    elif what == "addresses":
        return [publisher.events, publisher.replay]
    elif what == "flood":
        return await _flood(publisher, *more)
    elif what == "sync":
        return publisher.next_seq
    return None


async def _flood(publisher: FakePublisher, payloads: list[bytes], seconds: float) -> int:
    """Send batches in turn as fast as they can be sent, the first one unheard; return how many."""
    loop, sent = asyncio.get_running_loop(), 0
    end = loop.time() + seconds
    while loop.time() < end:
        for _ in range(1_000):
            seq = publisher.record(payload=payloads[sent % len(payloads)])
            sent += 1
            if sent > 1:
                publisher.send_now([b"kv", seq.to_bytes(8, "big"), publisher.replay_log[seq]])
        await asyncio.sleep(0)
    return sent


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:5]))

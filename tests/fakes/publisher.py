"""The event side of an engine, on real ZMQ sockets, with faults on demand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq
import zmq.asyncio

from kvatlas.common import limits

END_SEQ = b"\xff" * 8


def stored(
    hashes: list[int],
    tokens: list[int],
    parent: int | None = None,
    block_size: int = 4,
    **more: Any,
) -> dict[str, Any]:
    """Write a BlockStored as vLLM 0.32 does."""
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": block_size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        **more,
    }


def removed(*hashes: int) -> dict[str, Any]:
    """Write a BlockRemoved as vLLM 0.32 does."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0}


SLOW = 0.9
"""Part of what a replay may be idle, between two messages of a slow one."""
WRONG_BY = 5
CLEARED = {"type": "AllBlocksCleared"}


def batch(*events: Any) -> bytes:
    """Pack events as one message's payload."""
    packed: bytes = msgpack.packb([time.time(), list(events), 0])
    return packed


@dataclass(slots=True)
class FakePublisher:
    """A PUB and a ROUTER socket on loopback.

    Attributes:
        replay_log: what a replay answers from; tests may punch holes into it.
        replays: start sequences that were asked for.
        topic_in_replay: the reply form of vLLM 0.27 and later, else that of 0.24 and earlier.
        silent: whether replays are left unanswered.
        muted: batches are recorded, but not sent.
        replay_fault: how replays go wrong: "slow" (just not idle), "endless" (it never
            stops counting), "wrong_seq" (numbers are too high), "no_end"; None for not at all.
        queue_max: messages that wait for a slow subscriber; 0 for as many as come.
        replay_max: batches that the log holds, the oldest go first; None for all.
    """

    topic_in_replay: bool = True
    silent: bool = False
    muted: bool = False
    replay_fault: str | None = None
    queue_max: int = 0
    replay_max: int | None = None
    replay_log: dict[int, bytes] = field(default_factory=dict)
    lose_once: set[int] = field(default_factory=set)
    replays: list[int] = field(default_factory=list)
    next_seq: int = 0
    events: str = ""
    replay: str = ""
    _context: Any = None
    _pub: Any = None
    _router: Any = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.end()

    async def end(self) -> None:
        """Go away for good."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def open(self) -> None:
        """Bind the sockets; again after `close`, at the same addresses."""
        self._context = self._context or zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        for socket, address in ((self._pub, self.events), (self._router, self.replay)):
            socket.linger = 0
            socket.sndhwm = self.queue_max if socket is self._pub else 0
            await _bind(socket, address or "tcp://127.0.0.1:*")
        self.events = self._pub.last_endpoint.decode()
        self.replay = self._router.last_endpoint.decode()
        self._tasks.add(asyncio.create_task(self._serve(self._router)))

    def close(self) -> None:
        """Go away as an engine that dies."""
        self._pub.close(0)
        self._router.close(0)

    async def restart(self) -> None:
        """Die and come back with nothing remembered."""
        self.close()
        self.replay_log.clear()
        self.next_seq = 0
        await self.open()

    async def publish(self, *events: Any, payload: bytes | None = None) -> int:
        """Send a batch, or a payload of any kind; return its sequence."""
        seq = self.record(*events, payload=payload)
        if not self.muted:
            await self.resend(seq)
        return seq

    def record(self, *events: Any, payload: bytes | None = None) -> int:
        """Put a batch into the replay log without sending it: a message lost on its way."""
        seq = self.next_seq
        self.next_seq += 1
        self.replay_log[seq] = batch(*events) if payload is None else payload
        if self.replay_max is not None:
            self.replay_log.pop(seq - self.replay_max, None)
        return seq

    async def resend(self, seq: int) -> None:
        """Send what the replay log holds."""
        await self.send_frames([b"kv", seq.to_bytes(8, "big"), self.replay_log[seq]])

    async def send_frames(self, frames: list[bytes]) -> None:
        """Send a message of any shape."""
        await self._pub.send_multipart(frames)

    def send_now(self, frames: list[bytes]) -> None:
        """Send a message without a round through the loop."""
        zmq.Socket.shadow(self._pub.underlying).send_multipart(frames)

    async def _serve(self, router: Any) -> None:
        while not router.closed:
            try:
                identity, empty, start = await router.recv_multipart()
            except zmq.ZMQError:
                return
            assert empty == b""
            first = int.from_bytes(start, "big")
            self.replays.append(first)
            if not self.silent:
                await self._answer(router, identity, first)

    async def _answer(self, router: Any, identity: bytes, first: int) -> None:
        head = [identity, b"", *([b"kv"] if self.topic_in_replay else [])]
        fault, last = self.replay_fault, first
        for seq, payload in sorted(self.replay_log.items()):
            if seq in self.lose_once:
                self.lose_once.discard(seq)
            elif seq >= first:
                last = seq
                told = seq + WRONG_BY if fault == "wrong_seq" else seq
                await router.send_multipart([*head, told.to_bytes(8, "big"), payload])
                await asyncio.sleep(SLOW * limits.REPLAY_IDLE_S if fault == "slow" else 0)
        while fault == "endless" and self.replay_fault == fault and not router.closed:
            last += 1
            await router.send_multipart([*head, last.to_bytes(8, "big"), batch()])
            await asyncio.sleep(0)
        if fault is None or fault == "slow":
            end = [b""] if self.topic_in_replay else []
            await router.send_multipart([identity, b"", *end, END_SEQ, b""])


async def _bind(socket: Any, address: str) -> None:
    """Bind, waiting for ZMQ's own thread to give the address back."""
    for _ in range(100):
        try:
            socket.bind(address)
        except zmq.ZMQError:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError(address)

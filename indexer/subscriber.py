"""ZMQ in and out for one endpoint. I/O only: what messages mean is the feed's affair.

kvatlas connects to the address that the configuration names and never binds, so the identity of
an endpoint is its socket; topics and payloads are not trusted with it.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvatlas.indexer.discovery import Source
    from kvatlas.indexer.feed import Feed
    from kvatlas.indexer.turns import Turns

END_SEQ: Final = b"\xff" * 8
BURST_BATCHES: Final = 64
BURST_BYTES: Final = 32 * 1024
"""Messages taken before the loop gets its turn: about 1 ms of work, so that Redis has something to
do while the next ones are taken. A larger message comes alone."""
RECEIVE_BATCHES_MAX: Final = 100_000
"""Messages that ZMQ queues for us: vLLM's own high-water mark."""
RECONNECT_SPREAD: Final = 5.0
MONITORED: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Subscriber:
    """Follow one endpoint's events for ever.

    Args:
        context: shared by all subscribers of the process.
        source: where the events come from.
        feed: what takes them.
        replay_slots: bounds the replays of the process.
        turns: bound how long the process takes events at a stretch.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        source: Source,
        feed: Feed,
        replay_slots: asyncio.Semaphore,
        turns: Turns,
    ) -> None:
        self._context = context
        self._source = source
        self._feed = feed
        self._sequencer = feed.sequencer
        self._replay_slots = replay_slots
        self._turns = turns
        self._replay_wanted = asyncio.Event()
        self._rests_until = 0.0

    def tick(self) -> None:
        """Let time pass for the feed; call it a few times a second."""
        self._feed.tick(monotonic())
        self._settle()

    async def run(self) -> None:
        """Receive and replay until cancelled.

        Raises:
            ConfigError: an address is not one that ZMQ can use.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive())
            if self._source.replay is not None:
                group.create_task(self._replay(self._source.replay))

    def _settle(self) -> None:
        """Work off what the last input made ready."""
        self._feed.pump()
        if self._sequencer.replay_from is not None:
            self._replay_wanted.set()

    # --- live ---------------------------------------------------------------------------------

    async def _receive(self) -> None:
        with self._socket(zmq.SUB, self._source.events) as sub:
            monitor = sub.get_monitor_socket(MONITORED)
            sub.subscribe(b"")
            _connect(sub, self._source.events)
            poller = zmq.asyncio.Poller()
            poller.register(sub, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            told, sent = _plain(monitor), _plain(sub)
            try:
                while True:
                    await self._turns.mine()
                    if not self._take_burst(told, sent):
                        await poller.poll()
                    await asyncio.sleep(0)
            finally:
                sub.disable_monitor()
                monitor.close(0)

    def _take_burst(self, told: zmq.Socket[bytes], sent: zmq.Socket[bytes]) -> bool:
        """Take some of what has arrived; tell whether there was anything."""
        # First what happened to the connection, then what came over it.
        events = _burst(told)
        for frames in events:
            self._note(parse_monitor_message(frames)["event"])
        messages = _burst(sent)
        for frames in messages:
            self._take(frames)
        self._settle()
        return bool(events or messages)

    def _note(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._rests_until = 0.0
            self._sequencer.connected(monotonic())
        elif event == zmq.EVENT_DISCONNECTED:
            self._sequencer.disconnected()

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 3 or len(frames[1]) != len(END_SEQ):
            self._feed.reject("frames")
            return
        self._sequencer.live(int.from_bytes(frames[1], "big"), frames[2], monotonic())

    # --- replay -------------------------------------------------------------------------------

    async def _replay(self, address: str) -> None:
        failures = 0
        while True:
            await self._replay_wanted.wait()
            if monotonic() < self._rests_until:
                self._sequencer.replay_ended(monotonic(), complete=False)
                self._settle()
            else:
                failures = 0 if await self._replay_in_turn(address) else failures + 1
                self._rest(failures - limits.REPLAY_ATTEMPTS_MAX)
            if self._sequencer.replay_from is None:
                self._replay_wanted.clear()

    async def _replay_in_turn(self, address: str) -> bool:
        """Replay when a slot is free; tell whether the engine did not fail at it."""
        async with self._replay_slots:
            failed = self._sequencer.counts["replay_failed"]
            start = self._sequencer.replay_from
            if start is not None:
                await self._replay_once(address, start)
            return self._sequencer.counts["replay_failed"] == failed

    def _rest(self, failures: int) -> None:
        """Ask no more for a while, longer each time, so that others have the slots.

        Meanwhile every replay counts as failed, as if there were no replay socket. An engine that
        has connected anew is asked at once.
        """
        if failures > 0:
            delay = limits.DOUBT_BACKOFF_S * 2 ** min(failures, 16)
            self._rests_until = monotonic() + min(delay, limits.DOUBT_BACKOFF_MAX_S)

    async def _replay_once(self, address: str, start: int) -> None:
        """Ask for everything from `start` and take it, unless another replay is wanted."""
        wanted = self._sequencer.replay_id
        deadline = monotonic() + limits.REPLAY_TOTAL_S
        with self._socket(zmq.DEALER, address) as dealer:
            _connect(dealer, address)
            await dealer.send_multipart([b"", start.to_bytes(8, "big")])
            sent = _plain(dealer)
            while self._sequencer.replay_id == wanted:
                ready = await dealer.poll(limits.REPLAY_IDLE_S * 1_000)
                if not ready or monotonic() > deadline:
                    self._sequencer.replay_ended(monotonic(), complete=False)
                else:
                    await self._turns.mine()
                    self._take_replayed(_burst(sent), wanted)
                self._settle()
                await asyncio.sleep(0)

    def _take_replayed(self, messages: list[list[bytes]], wanted: int) -> None:
        # Engines up to 0.24 send [empty, seq, payload], later ones a topic before the seq.
        for frames in messages:
            if len(frames) < 2 or len(frames[-2]) != len(END_SEQ):
                self._feed.reject("frames")
            elif frames[-2] == END_SEQ and not frames[-1]:
                self._sequencer.replay_ended(monotonic(), complete=True)
            else:
                seq = int.from_bytes(frames[-2], "big")
                self._sequencer.replayed(seq, frames[-1], monotonic())
            if self._sequencer.replay_id != wanted:
                return

    @contextmanager
    def _socket(self, kind: int, address: str) -> Iterator[zmq.asyncio.Socket]:
        socket = self._context.socket(kind)
        try:
            for option, value in (
                (zmq.LINGER, 0),
                (zmq.RCVHWM, RECEIVE_BATCHES_MAX),
                # Larger messages end the connection; smaller ones are refused with a reason.
                (zmq.MAXMSGSIZE, 2 * limits.FRAME_BYTES_MAX),
                # Spread, so that endpoints which were lost together do not come back in step.
                (zmq.RECONNECT_IVL, int(_jittered(limits.RECONNECT_S) * 1_000)),
                (zmq.RECONNECT_IVL_MAX, int(limits.RECONNECT_MAX_S * 1_000)),
                (zmq.CONNECT_TIMEOUT, int(limits.FEED_CONNECT_S * 1_000)),
                (zmq.HANDSHAKE_IVL, int(limits.FEED_HANDSHAKE_S * 1_000)),
                (zmq.HEARTBEAT_IVL, int(limits.HEARTBEAT_S * 1_000)),
                (zmq.HEARTBEAT_TIMEOUT, int(limits.HEARTBEAT_TIMEOUT_S * 1_000)),
                (zmq.IPV6, int("[" in address)),
            ):
                socket.setsockopt(option, value)
            yield socket
        finally:
            socket.close(0)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1.0, RECONNECT_SPREAD)  # noqa: S311 - jitter


def _connect(socket: zmq.asyncio.Socket, address: str) -> None:
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConfigError([f"endpoints: {address}: {error.strerror}"]) from None


def _plain(socket: zmq.asyncio.Socket) -> zmq.Socket[bytes]:
    """Give the socket without its asyncio: what has arrived is taken without a task for each."""
    return zmq.Socket.shadow(socket.underlying)


def _burst(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    """Take what has arrived, as much as a burst may be."""
    receive, room = socket.recv, BURST_BYTES
    messages: list[list[bytes]] = []
    while room > 0 and len(messages) < BURST_BATCHES:
        try:
            frames = [receive(zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            break
        # recv_multipart asks the socket whether more follows, which takes longer than to receive.
        while frames[-1].more:
            frames.append(receive(copy=False))
        message = [frame.bytes for frame in frames]
        room -= sum(map(len, message))
        messages.append(message)
    return messages

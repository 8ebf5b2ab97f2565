"""An engine's event sockets, looked at from outside: does one publish, and how far is it?"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from kvatlas.cli.doctor_facts import ReplayFound
from kvatlas.common import limits
from kvatlas.common.clock import monotonic

END: Final = b"\xff" * 8
CONNECT_S: Final = 1.5
"""For a connection and the handshake that tells a publisher from other sockets."""
BATCHES_MAX: Final = 20_000
"""Batches of a replay that are counted; engines keep 10,000 unless told otherwise."""


class EventSockets:
    """Sockets that connect, listen for a moment and are closed."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)

    async def accepts(self, address: str) -> bool:
        """Tell whether a publisher answers at an address."""
        socket = self._socket(zmq.SUB)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            socket.subscribe(b"")
            socket.connect(address)
            if not await monitor.poll(CONNECT_S * 1_000):
                return False
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)
        except zmq.ZMQError:
            return False
        finally:
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)

    async def replay(self, address: str, start: int) -> ReplayFound:
        """Ask for all batches from a sequence on, and note how far they go."""
        newest, has_start = -1, False
        socket = self._socket(zmq.DEALER)
        deadline = monotonic() + limits.REPLAY_TOTAL_S
        try:
            socket.connect(address)
            await socket.send_multipart([b"", start.to_bytes(8, "big")])
            for _ in range(BATCHES_MAX):
                ready = await socket.poll(limits.REPLAY_IDLE_S * 1_000)
                if not ready or monotonic() > deadline:
                    break
                frames = await socket.recv_multipart()
                if len(frames) < 2 or len(frames[-2]) != len(END):
                    break
                if frames[-2] == END and not frames[-1]:
                    return ReplayFound(start, newest if newest >= 0 else None, has_start, True)
                seq = int.from_bytes(frames[-2], "big")
                newest, has_start = max(newest, seq), has_start or seq == start
        except zmq.ZMQError:
            pass
        finally:
            socket.close(0)
        return ReplayFound(start, newest if newest >= 0 else None, has_start, False)

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * limits.FRAME_BYTES_MAX)
        socket.setsockopt(zmq.IPV6, 1)
        return socket

"""Chunks on a schedule: what an engine writes to all its streams, and when."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Final

STAMP: Final = b"chatcmpl-bench-"
"""What the moment of a chunk stands behind: nanoseconds of the monotonic clock, 19 digits."""
STAMP_DIGITS: Final = 19
_TICK_S: Final = 0.001
_FIRST = b'data: {"id":"' + STAMP
_LAST = (
    b'","object":"chat.completion.chunk","created":1764120000,"model":"demo","choices":[{"index":'
    b'0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"token_ids":null}\n\n'
)
_SIZE = b"%x\r\n" % (len(_FIRST) + STAMP_DIGITS + len(_LAST))
_BEFORE, _AFTER = _SIZE + _FIRST, _LAST + b"\r\n"


class Stream:
    """One answer that goes on until its reader leaves."""

    __slots__ = ("is_over", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.is_over = False


class Pacer:
    """Write a chunk to each stream at each interval of its own.

    Args:
        interval_s: between two chunks of a stream.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self._due: list[tuple[float, int, Stream]] = []
        self._count = 0

    def start(self, transport: asyncio.Transport) -> Stream:
        """Begin a stream."""
        stream = Stream(transport)
        self._count += 1
        heapq.heappush(self._due, (time.monotonic(), self._count, stream))
        return stream

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                due, number, stream = heapq.heappop(self._due)
                if not stream.is_over:
                    stamp = b"%019d" % time.monotonic_ns()
                    stream.transport.write(_BEFORE + stamp + _AFTER)
                    # A schedule that fell behind is not caught up with in a burst.
                    following = max(due + self._interval, now - self._interval)
                    heapq.heappush(self._due, (following, number, stream))
            await asyncio.sleep(_TICK_S)

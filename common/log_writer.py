"""Write log lines from a thread of its own: a full pipe or disk makes nobody wait."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from kvatlas.common import limits
from kvatlas.common.metrics import gauge

DROPPED: Final = gauge(
    "log_dropped",
    "",
    "lines",
    "Log lines that were not written since the start: what reads them does not keep up.",
    "rises: a full disk, or a collector of logs that is stuck",
)
_LEVELS: Final = ("debug", "info", "warning", "error", "critical", "exception", "msg")


class LineWriter:
    """Queue lines; what does not fit is dropped, counted, and told of when there is room.

    Args:
        descriptor: of the file to write to.
        lost: writes the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, lost: Callable[[int], bytes]) -> None:
        self._descriptor = descriptor
        self._lost = lost
        self._lines: deque[bytes] = deque()
        # Each is written by one thread alone.
        self._unqueued = 0
        self._unwritten = 0
        self._told = 0
        self._is_closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Count the lines that were not written, since the start."""
        return self._unqueued + self._unwritten

    def write(self, line: bytes) -> None:
        """Queue a line, without its end. Cost: 0.3 us."""
        if len(self._lines) >= limits.LOG_LINES_QUEUED_MAX:
            self._unqueued += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what is queued, for a while at most; then nothing is written any more."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(limits.LOG_CLOSE_S)

    def _run(self) -> None:
        while not (self._is_closing and not self._lines):
            self._wake.wait()
            self._wake.clear()
            while self._lines:
                self._write_some()
            if not self._is_closing:
                # What comes in the meantime shares a call.
                threading.Event().wait(limits.LOG_GATHER_S)

    def _write_some(self) -> None:
        taken: list[bytes] = []
        size = 0
        while self._lines and size < limits.LOG_WRITE_BYTES:
            line = self._lines.popleft()
            size += len(line)
            taken.append(line)
        dropped = self.dropped
        untold = [self._lost(dropped - self._told)] if dropped > self._told else []
        rest = memoryview(b"\n".join([*taken, *untold, b""]))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # A full disk, or nobody who reads: there is no one to tell before it flows again.
                self._unwritten += len(taken)
                return
        self._told = dropped


class QueuedLogger:
    """What structlog writes to."""

    def __init__(self, writer: LineWriter) -> None:
        for level in _LEVELS:
            setattr(self, level, writer.write)

"""The only door to time: durations come from here, so that tests can pass their own."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds on a monotonic scale with an arbitrary zero."""

monotonic: Clock = time.monotonic
thread_time: Clock = time.thread_time
"""CPU that the calling thread has used, in seconds."""

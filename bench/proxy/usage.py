"""What processes used of the CPU, to the nanosecond where the kernel tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bench.index.machine import cpu_s
from bench.routing.cpu import machine_s


def cpu_ns(pid: int) -> int:
    """Give the CPU time of all threads that a process has."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total or round(cpu_s(pid) * 1e9)


def machine_busy_s() -> float:
    """Give the CPU time that everybody together has used."""
    return machine_s()

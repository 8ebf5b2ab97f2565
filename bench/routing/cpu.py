"""What processes and the machine have used of the CPU, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.index.machine import cpu_s

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MACHINE = "machine"


class Cpu:
    """Count from when this is made.

    Args:
        groups: names and their processes; children of these count with them.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups = groups
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        """Give the CPU seconds of each group, and of the whole machine, since then."""
        now = self._now()
        return {name: now[name] - self._before[name] for name in now}

    def _now(self) -> dict[str, float]:
        children = _children()
        found = {
            name: sum(_seconds(pid) for pid in _family(pids, children))
            for name, pids in self._groups.items()
        }
        # The load generator is the parent of all others; it counts alone.
        own = os.getpid()
        found |= {name: _seconds(own) for name, pids in self._groups.items() if own in pids}
        found[MACHINE] = machine_s()
        return found


def _family(pids: Iterable[int], children: Mapping[int, Sequence[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Others on the machine come and go meanwhile.
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                found.setdefault(int(parent), []).append(int(entry.name))
    return found


def _seconds(pid: int) -> float:
    """Give the CPU time of a process; none of one that is gone."""
    with contextlib.suppress(OSError):
        return cpu_s(pid)
    return 0.0


def machine_s() -> float:
    """Give the CPU time that everybody together has used."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    # Guests are in user already; idle and waiting for disks are not work.
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / _TICKS_PER_S

"""Processes on this machine: start them, stop them, ask what they used."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF

from kvatlas.cli.bound import bound_command
from kvatlas.cli.processes import stop

CACHE = Path.home() / ".cache" / "kvatlas"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STOP_S = 8.0


class BenchError(Exception):
    """A benchmark cannot run; the message says why."""


def prefer_redis_7() -> None:
    """Let tests/redis7.sh's server be found where none is on the PATH."""
    if shutil.which("redis-server") is None and (CACHE / "redis-7.0/redis-server").exists():
        os.environ["PATH"] += os.pathsep + str(CACHE / "redis-7.0")


def cpu_s(pid: int) -> float:
    """Give the CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Give the memory that a process has resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} is gone")


def load_average() -> float:
    """Give the load of the last minute: whether others share the machine."""
    return os.getloadavg()[0]


class Others:
    """Tell how many cores others have used since this was made, or last asked.

    Children of ours count as others until they have ended.
    """

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float:
        """Give them."""
        before, self._before = self._before, self._now()
        clock, busy, own = (b - a for a, b in zip(before, self._before, strict=True))
        return max(0.0, (busy - own) / clock)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        busy = sum(ticks[:8]) - ticks[3] - ticks[4]
        used = (resource.getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
        own = sum(each.ru_utime + each.ru_stime for each in used)
        return time.monotonic(), busy / _TICKS_PER_S, own


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the context ends; it dies with this process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KVATLAS_")}
    with log.open("wb") as out:
        child = subprocess.Popen(
            bound_command(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        stop(child, STOP_S)


def check_alive(child: subprocess.Popen[bytes], log: Path) -> None:
    """Make sure that a child runs.

    Raises:
        BenchError: it ended; with the end of its log.
    """
    if child.poll() is not None:
        tail = log.read_text(errors="replace")[-8_000:]
        raise BenchError(f"it ended with status {child.returncode}: {tail}")


class Deadline:
    """A time to give up at."""

    def __init__(self, seconds: float, what: str) -> None:
        self._end = time.monotonic() + seconds
        self._what = what

    def check(self) -> None:
        """Raise BenchError when the time is over."""
        if time.monotonic() > self._end:
            raise BenchError(f"{self._what}: not in time")

"""What holds for every chaos test: nothing is left behind, nothing leaked, all is told.

`make chaos` sets TEST_CHAOS_FULL and TEST_FAULTS_REPORT; without them the same faults are injected
with fewer engines and batches, once each.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import structlog
import uvloop

from kvatlas.common import limits
from kvatlas.common.log import configure_logs
from kvatlas.common.log_writer import LineWriter, QueuedLogger
from tests.fakes.canary import Canary
from tests.fakes.chaos_engine import ChaosEngine
from tests.fakes.chaos_place import ChaosPlace, Scale

HERE = Path(__file__).parent
QUICK = Scale(engines=2, batches=60, rounds=1, is_full=False)
FULL = Scale(engines=8, batches=1_000, rounds=3, is_full=True)
LIMIT_S = {False: 30, True: 600}
TICK_S = 0.002
LEFT_S = 5.0
"""ZMQ closes its sockets in a thread of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give chaos tests the time that faults take."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None or _is_full():
            item.add_marker(pytest.mark.timeout(LIMIT_S[_is_full()]), append=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat what takes servers of its own as often as a fault is injected."""
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range((FULL if _is_full() else QUICK).rounds))


def _is_full() -> bool:
    return bool(os.environ.get("TEST_CHAOS_FULL"))


@pytest.fixture
def scale() -> Scale:
    """Say how much to do."""
    return FULL if _is_full() else QUICK


@pytest.fixture
def short_replays(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up replays sooner in `make test`."""
    if not scale.is_full:
        monkeypatch.setattr(limits, "REPLAY_TOTAL_S", 0.5)
        monkeypatch.setattr(limits, "REPLAY_IDLE_S", 0.15)
        monkeypatch.setattr(limits, "DOUBT_BACKOFF_S", 0.2)


@dataclass(frozen=True)
class Report:
    """What one row's test tells docs/FAULTS.md.

    Attributes:
        recovered_s: from the end of the fault until all was right again, per round; empty where
            nothing has to recover.
        bound_s: what recovery may take; None where the row only reports it.
    """

    row: str
    injected: str
    seen: str
    recovered_s: Sequence[float] = ()
    bound_s: float | None = 5.0

    def tell(self) -> None:
        """Write a line for the page, where one is made; insist on the bound."""
        if name := os.environ.get("TEST_FAULTS_REPORT"):
            with Path(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")
        if self.bound_s is not None:
            assert max(self.recovered_s, default=0.0) <= self.bound_s, self.recovered_s


@pytest.fixture(scope="session", autouse=True)
def libuv() -> None:
    """Let libuv open the pipe that it keeps for the life of the process."""
    uvloop.run(asyncio.sleep(0))


class Lines(LineWriter):
    """Keep lines instead of writing them, at once."""

    def __init__(self, kept: io.StringIO) -> None:
        self._kept = kept

    def write(self, line: bytes) -> None:
        """Keep a line."""
        self._kept.write(line.decode() + "\n")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Collect the product's log as JSON lines, everything that it would say."""
    lines = io.StringIO()
    configure_logs("debug", json=True).close()
    # Loggers that remember this test's stream would write into it for ever.
    structlog.configure(
        logger_factory=lambda *_: QueuedLogger(Lines(lines)), cache_logger_on_first_use=False
    )
    yield lines
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def canary(
    log: io.StringIO, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[Canary]:
    """Give a text that must turn up in no log, metric or key, and see to it."""
    caplog.set_level(logging.DEBUG)
    made = Canary(f"canary-{secrets.token_hex(8)}")
    yield made
    made.look("log", log.getvalue())
    made.look("log", caplog.text)
    made.look("output", "".join(capfd.readouterr()))
    assert made.seen_in == []


@pytest.fixture(autouse=True)
async def nothing_is_left(canary: Canary) -> AsyncIterator[None]:
    """See that tasks, files and sockets are as many as before when all has ended."""
    del canary  # it comes first, so that its own files count as there before
    tasks, files = _tasks(), _files()
    yield
    deadline = time.monotonic() + LEFT_S
    while (left := _left(tasks, files)) and time.monotonic() < deadline:
        gc.collect()
        await asyncio.sleep(0.05)
    assert not left


def _left(tasks: set[str], files: Counter[str]) -> list[str]:
    """List what there is more than before."""
    more = [f"task {name}" for name in _tasks() - tasks]
    found = _files()
    return more + (list((found - files).elements()) if found.total() > files.total() else [])


def _tasks() -> set[str]:
    return {repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _files() -> Counter[str]:
    """List what is open: files, sockets, pipes, events."""
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[str(link.readlink())] += 1
        except OSError:
            continue  # the listing's own
    return found


def epochs_of(place: ChaosPlace, engine: ChaosEngine, reason: str) -> float:
    """Count the epochs of an endpoint that were opened for a reason."""
    return place.count("kvatlas_indexer_epochs_total", endpoint=engine.name, reason=reason)


@asynccontextmanager
async def loop_stalls() -> AsyncIterator[list[float]]:
    """Collect by how many seconds the event loop comes late, until the context ends."""
    late = [0.0]

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            late.append(time.monotonic() - began - TICK_S)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

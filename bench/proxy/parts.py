"""What is measured, in rounds: every target once before any of them again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.index.machine import BenchError
from bench.proxy.fleet import VARIANTS, Fleet, Load
from bench.proxy.shares import shares

REQUEST_SIZES: Final = (1, 32, 128)
STREAM_SIZE: Final = 1
STALL_SIZE: Final = 512
STALL_LOAD: Final = 2
"""Bodies at once: more of them saturate the machine, and the poll waits for that."""
STAGE_SIZES: Final = (1, 32)
PROFILE_S: Final = 12.0
"""Of a profile at least: some 2,500 samples, so that a share of 10 % is right to one percent."""
STREAMS: Final = 500
SATURATED: Final = 32
DEFAULT: Final = "kvatlas"

Figures = dict[str, Any]


@dataclass(slots=True)
class Rounds:
    """Runs of each case on each target; the median counts.

    Attributes:
        runs: by case, then by target.
        failures: what could not be measured, and why.
    """

    fleet: Fleet
    count: int
    seconds: float
    say: Callable[[str], None]
    runs: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def make(self, case: str, names: Sequence[str], measure: Callable[[str], Figures]) -> None:
        """Measure one case on all targets, so many times."""
        for number in range(self.count):
            for name in names:
                try:
                    found = measure(name)
                except BenchError as error:
                    self.failures[f"{case}, {name}"] = str(error)[-300:]
                    self.say(f"  {case} {name}: {error}")
                    continue
                self.runs.setdefault(case, {}).setdefault(name, []).append(found)
                self.say(f"  {case} round {number + 1} {name}: {_line(found)}")


def _line(found: Figures) -> str:
    shown = {name: found[name] for name in ("cpu_us", "p50_us", "p99_us", "per_s", "max_us")
             if name in found}  # fmt: skip
    text = ", ".join(f"{name} {value:,.0f}" for name, value in shown.items())
    bad = f", NOT 200: {found['bad']}" if found.get("bad") else ""
    return f"{text}, CPUs in use {found.get('machine_cpus', 0):.2f}{bad}"


def median(runs: Sequence[Figures]) -> Figures:
    """Give the median of each figure."""
    numbers = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    found: Figures = {name: statistics.median(run[name] for run in runs) for name in numbers}
    found["bad"] = sum(sum(run.get("bad", {}).values()) for run in runs)
    found["low_us"] = min(run.get("cpu_us", 0.0) for run in runs)
    found["high_us"] = max(run.get("cpu_us", 0.0) for run in runs)
    return found


def requests(rounds: Rounds, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Measure requests one at a time, and as many as go."""
    for size in sizes:
        for concurrency in (1, SATURATED):
            load = Load("requests", size, concurrency, rounds.seconds)
            rounds.make(_case("requests", size, concurrency), names, _measuring(rounds, load))


def streams(rounds: Rounds, names: Sequence[str], count: int) -> None:
    """Measure chunks."""
    load = Load("streams", STREAM_SIZE, count, rounds.seconds, warm_s=2.0)
    rounds.make(_case("streams", STREAM_SIZE, count), names, _measuring(rounds, load))


def stages(rounds: Rounds, folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Measure with parts switched off or on; give the profile's shares of the default."""
    found: dict[str, Any] = {}
    for size in sizes:
        load = Load("requests", size, 16, rounds.seconds)
        names = [DEFAULT, *VARIANTS]
        rounds.make(_case("stages", size, 16), names, _measuring(rounds, load))
        raw = folder / f"profile-{size}.raw"
        profiled = Load("requests", size, 16, max(PROFILE_S, rounds.seconds))
        try:
            rounds.fleet.profile(DEFAULT, profiled, raw)
            found[f"{size} KB"] = shares(raw.read_text(encoding="utf-8"))
        except (BenchError, OSError) as error:
            rounds.failures[f"profile, {size} KB"] = str(error)
    return found


def stall(rounds: Rounds, names: Sequence[str]) -> None:
    """Measure how long an answer to a trifle takes while long bodies pass."""
    load = Load("requests", STALL_SIZE, STALL_LOAD, rounds.seconds + 2.0)
    rounds.make(
        _case("stall", STALL_SIZE, STALL_LOAD), names, lambda name: rounds.fleet.stall(name, load)
    )


def _case(part: str, size: int, concurrency: int) -> str:
    return f"{part} {size} KB c={concurrency}"


def _measuring(rounds: Rounds, load: Load) -> Callable[[str], Figures]:
    return lambda name: rounds.fleet.measure(name, load)

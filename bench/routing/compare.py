"""All runs of a comparison, interleaved; what could not be measured is kept with its reason."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.index.machine import BenchError
from bench.routing import report
from bench.routing.routers import NOT_TO_BE_HAD
from bench.routing.run import Plan, run_once

FAILURES_MAX = 2
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Habits:
    """How runs are made.

    Attributes:
        runs: of each router at each rate.
        tries: of a run that is discarded.
        cpu_max: share of the machine above which it is.
    """

    runs: int
    tries: int
    cpu_max: float


@dataclass(frozen=True, slots=True)
class Case:
    """A rate, and what came of it.

    Attributes:
        facts: what is known of it beforehand.
        runs: those that count, by router.
    """

    rate: float
    plan: Plan
    facts: dict[str, Any]
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """Make runs and keep their figures.

    Attributes:
        json: file that all figures are written to after each run.
        keep: folder for logs and requests of each run.
        failed: reasons why runs did not come about, by router.
    """

    routers: Sequence[str]
    habits: Habits
    json: Path | None
    keep: Path | None
    figures: dict[str, Any]
    discarded: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def make(self, cases: Sequence[Case]) -> None:
        """Run every router at every rate in turn, as often as wanted."""
        for number in range(self.habits.runs):
            for case in cases:
                for name in self.routers:
                    run = self._run(name, case, number)
                    if run is not None:
                        case.runs.setdefault(name, []).append(run)
                    self._save(cases)

    def reasons(self) -> dict[str, str]:
        """Say, by router, why it or a run of it is missing."""
        return {**NOT_TO_BE_HAD, **{name: " | ".join(why) for name, why in self.failed.items()}}

    def _run(self, name: str, case: Case, number: int) -> dict[str, Any] | None:
        """Make one run, again where the machine was too busy; None where that did not help."""
        for attempt in range(self.habits.tries):
            if len(self.failed.get(name, [])) >= FAILURES_MAX:
                return None
            keep = self.keep and self.keep / f"{name}-x{case.rate:g}-{number}-{attempt}"
            try:
                run = run_once(name, case.plan, keep)
            except BenchError as error:
                self.failed.setdefault(name, []).append(str(error)[:500])
                report.failure(name, str(error))
                continue
            report.line(name, case.rate, number, run)
            if run["machine_share"] <= self.habits.cpu_max:
                return run
            self.discarded.append({"router": name, "rate": case.rate, **run})
            time.sleep(RETRY_S)
        return None

    def _save(self, cases: Sequence[Case]) -> None:
        self.figures |= {
            "rates": {f"{case.rate:g}": {**case.facts, "runs": case.runs} for case in cases},
            "discarded": self.discarded,
            "missing": self.reasons(),
        }
        if self.json:
            self.json.write_text(json.dumps(self.figures, indent=1))

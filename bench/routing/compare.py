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

    def at(self, rate: float, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
        """Run every router in turn, as often as wanted, at a rate of which `facts` are known."""
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in self.routers}
        found = {**facts, "runs": runs}
        self.figures.setdefault("rates", {})[str(rate)] = found
        for number in range(self.habits.runs):
            for name in self.routers:
                run = self._run(name, rate, number, plan)
                if run is not None:
                    runs[name].append(run)
                self._save()
        return found

    def reasons(self) -> dict[str, str]:
        """Say, by router, why it or a run of it is missing."""
        return {**NOT_TO_BE_HAD, **{name: " | ".join(why) for name, why in self.failed.items()}}

    def _run(self, name: str, rate: float, number: int, plan: Plan) -> dict[str, Any] | None:
        """Make one run, again where the machine was too busy; None where that did not help."""
        for attempt in range(self.habits.tries):
            if len(self.failed.get(name, [])) >= FAILURES_MAX:
                return None
            keep = self.keep and self.keep / f"{name}-x{rate:g}-{number}-{attempt}"
            try:
                run = run_once(name, plan, keep)
            except BenchError as error:
                self.failed.setdefault(name, []).append(str(error)[:500])
                report.failure(name, str(error))
                continue
            report.line(name, rate, number, run)
            if run["machine_share"] <= self.habits.cpu_max:
                return run
            self.discarded.append({"router": name, "rate": rate, **run})
            time.sleep(RETRY_S)
        return None

    def _save(self) -> None:
        self.figures |= {"discarded": self.discarded, "missing": self.reasons()}
        if self.json:
            self.json.write_text(json.dumps(self.figures, indent=1))

"""What is made of a run's requests: percentiles, goodput, balance; medians over runs. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvatlas.cli.best_share import percentile


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request and what came of it; times in seconds of the model since the slice began.

    Attributes:
        due_s: when it was to be sent; all is counted from here, however late it was sent.
        first_s: when the first text came; None if none did.
        fault: why it failed, or None.
        cached_tokens: what the engine says that it had; None where nothing was said.
    """

    due_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    fault: str | None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    answer_tokens: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Give the time to the first token; None for a request that failed."""
        return None if self.fault or self.first_s is None else self.first_s - self.due_s


def latency(outcomes: Sequence[Outcome], limit_s: float, length_s: float) -> dict[str, float]:
    """Sum up times and failures.

    Args:
        outcomes: of all requests, at least one.
        limit_s: within which a first token is good.
        length_s: of the slice.
    """
    ttft = [each.ttft_s for each in outcomes if each.ttft_s is not None] or [math.nan]
    late = [each.sent_s - each.due_s for each in outcomes]
    good = sum(1 for each in ttft if each <= limit_s)
    return {
        "requests": len(outcomes),
        "errors": sum(1 for each in outcomes if each.fault),
        "ttft_mean_s": statistics.fmean(ttft),
        "ttft_p50_s": percentile(ttft, 0.5),
        "ttft_p90_s": percentile(ttft, 0.9),
        "ttft_p99_s": percentile(ttft, 0.99),
        "end_mean_s": statistics.fmean(each.end_s - each.due_s for each in outcomes),
        "good_per_s": good / length_s,
        "good_share": good / len(outcomes),
        "sent_late_p99_s": percentile(late, 0.99),
    }


def balance(loads: Sequence[float]) -> dict[str, float]:
    """Say how evenly work is spread: the busiest and the idlest engine, as parts of the mean."""
    mean = statistics.fmean(loads) if loads else 0.0
    if not mean:
        return {"max_of_mean": math.nan, "min_of_mean": math.nan}
    return {"max_of_mean": max(loads) / mean, "min_of_mean": min(loads) / mean}


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and between what the runs lie."""

    median: float
    low: float
    high: float


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Give median and spread of each figure that all runs have."""
    names = set.intersection(*(set(run) for run in runs)) if runs else set()
    found = {}
    for name in sorted(names):
        values = [run[name] for run in runs]
        found[name] = Spread(statistics.median(values), min(values), max(values))
    return found

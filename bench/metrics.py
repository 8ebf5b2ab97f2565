"""What counting costs on the way of a request: our instruments, and prometheus_client's.

PYTHONPATH=. python bench/metrics.py
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from typing import Any, Final

import prometheus_client as theirs

from kvatlas.router.metrics import RouterMetrics

RUNS: Final = 5
TIMES: Final = 20_000
COUNTS: Final = 14
"""Counters that a request adds to: status, tokens, hits, usage."""
TIMINGS: Final = 7
"""Histograms that it is in: five stages, first byte, whole."""


def main() -> int:
    """Print the table."""
    ours = RouterMetrics()
    registry = theirs.CollectorRegistry()
    their_counter = theirs.Counter("c", "c", ("a", "b"), registry=registry)
    their_histogram = theirs.Histogram("h", "h", ("a",), registry=registry)
    gaps = ours.gap_seconds.labels("m")

    def request_of_ours() -> None:
        for _ in range(COUNTS):
            ours.predictions.labels("endpoint", "exact").inc()
        for _ in range(TIMINGS):
            ours.stage_seconds.labels("render").observe(0.0003)

    def request_of_theirs() -> None:
        for _ in range(COUNTS):
            their_counter.labels("endpoint", "exact").inc()
        for _ in range(TIMINGS):
            their_histogram.labels("render").observe(0.0003)

    rows: dict[str, Callable[[], Any]] = {
        "a request, prometheus_client": request_of_theirs,
        "a request, ours": request_of_ours,
        "a piece of a stream, ours": lambda: gaps.observe(0.02),
    }
    for name, call in rows.items():
        best = min(timeit.repeat(call, number=TIMES, repeat=RUNS)) / TIMES
        print(f"{name:32} {best * 1e6:7.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())

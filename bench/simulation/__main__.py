"""The tables of docs/SIMULATION.md and of docs/SCALING.md, simulated.

    python -m bench.simulation goals TRACE    the product against the oracle, many routers and one
    python -m bench.simulation delays TRACE   late sharing, the race, none at all
    python -m bench.simulation peers TRACE    all policies
    python -m bench.simulation scale TRACE    8 to 1,024 endpoints, 1 to 64 routers

TRACE is a file in Mooncake's format. The same command prints the same figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from time import monotonic

from kvatlas.planner import choices
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job
from kvatlas.planner.plan import Cut, jobs_of, records_of
from kvatlas.planner.results import Figures, figures
from kvatlas.planner.routers import Sharing
from kvatlas.planner.simulation import Fleet

SEED = 1
LIMIT_S = 5.0
REQUESTS = 3_000
DELAY = Sharing(0.002)
RATES: Mapping[str, Sequence[float]] = {
    "trace": (1.0, 2.0, 2.5, 2.75, 3.0),
    "made:documents": (1.0, 3.0, 5.0, 6.0),
    "made:agents": (2.0, 6.0, 12.0, 18.0),
    "made:no-reuse": (1.0, 2.0, 2.4),
    "made:hot-prompt": (1.0, 4.0, 6.0, 10.0),
    "made:bursts": (1.0, 6.0, 12.0),
}
SCALES = (
    (8, (1, 4), 1, 2.5),
    (64, (1, 16), 4, 5.0),
    (512, (1, 16), 16, 10.0),
    (1_024, (1, 64), 32, 10.0),
)
"""Endpoints, routers, copies of the trace, and speed-up: the same load for each endpoint."""


def jobs(trace: str, cut: Cut) -> list[Job]:
    """Make the jobs of a trace."""
    dice = Random(SEED)
    records = records_of(trace, cut, dice, lambda: Path(trace).read_bytes().splitlines())
    return jobs_of(records, cut, EngineModel(), dice)


def run(name: str, work: Sequence[Job], fleet: Fleet) -> Figures:
    """Simulate."""
    return figures(choices.run(name, work, fleet, lambda: Random(SEED)), LIMIT_S)


def over(one: Figures, other: Figures) -> str:
    """Write how much slower one is than another, in the mean and for the slow tenth."""
    mean = one.ttft_mean_s / other.ttft_mean_s - 1.0
    return f"{mean:+.1%} / {one.ttft_p90_s / other.ttft_p90_s - 1.0:+.1%}"


def waits(one: Figures) -> str:
    """Write mean and p90."""
    return f"{one.ttft_mean_s:.3f} / {one.ttft_p90_s:.3f}"


def goals(trace: str) -> Iterator[Sequence[str]]:
    """Compare the product with the oracle, and many routers with one."""
    yield "trace", "speed-up", "oracle in time", "oracle s", "kvatlas", "3 routers", "16 routers"
    for name, rates in RATES.items():
        for rate in rates:
            cut = Cut(requests=REQUESTS, speedup=rate)
            work = jobs(trace if name == "trace" else name, cut)
            best, one, three, many = (
                run(policy, work, Fleet(8, routers, sharing=DELAY))
                for policy, routers in (
                    ("oracle", 1), ("kvatlas", 1), ("kvatlas", 3), ("kvatlas", 16),
                )
            )  # fmt: skip
            yield (
                name, f"{rate:g}", f"{best.goodput:.1%}", waits(best), over(one, best),
                over(three, one), over(many, one),
            )  # fmt: skip


def delays(trace: str) -> Iterator[Sequence[str]]:
    """Compare delays of sharing, the race, and routers that hear nothing, with one router."""
    yield (
        "trace",
        "routers",
        "one router s",
        "2 ms",
        "50 ms",
        "race, 2 ms",
        "race, 50 ms",
        "own only",
    )
    sharings = (
        Sharing(0.002), Sharing(0.05), Sharing(0.002, races=True), Sharing(0.05, races=True),
        Sharing(own_only=True),
    )  # fmt: skip
    for name, rate, spread in (
        ("trace", 2.0, 0.0), ("trace", 2.0, 3_000.0), ("made:documents", 4.0, 0.0),
        ("made:agents", 6.0, 0.0), ("made:no-reuse", 2.0, 0.0),
    ):  # fmt: skip
        cut = Cut(requests=REQUESTS, speedup=rate, spread_ms=spread)
        work = jobs(trace if name == "trace" else name, cut)
        one = run("kvatlas", work, Fleet(8, 1))
        for routers in (3, 16):
            found = (run("kvatlas", work, Fleet(8, routers, sharing=each)) for each in sharings)
            label = f"{name} x{rate:g}{', spread' if spread else ''}"
            yield label, str(routers), waits(one), *(over(each, one) for each in found)


def peers(trace: str) -> Iterator[Sequence[str]]:
    """Compare all policies."""
    cells = ((2.0, 1), (3.0, 1), (3.0, 4))
    yield "policy", *(f"hit, s: x{rate:g}, {routers} routers" for rate, routers in cells)
    works = {rate: jobs(trace, Cut(requests=4_000, speedup=rate)) for rate, _ in cells}
    for name in choices.NAMES:
        found = (
            run(name, works[rate], Fleet(8, routers, sharing=DELAY)) for rate, routers in cells
        )
        yield name, *(f"{each.hit_share:.3f}, {waits(each)}" for each in found)


def scale(trace: str) -> Iterator[Sequence[str]]:
    """Grow the fleet, and its traffic with it."""
    yield "endpoints", "routers", "requests/s", "oracle s", "kvatlas s", "hit", "us per request"
    for endpoints, many, copies, rate in SCALES:
        requests = 16_000 // copies if copies > 4 else REQUESTS
        cut = Cut(requests=requests, speedup=rate, spread_ms=3_000.0, copies=copies)
        work = jobs(trace, cut)
        best = run("oracle", work, Fleet(endpoints, 1))
        for routers in many:
            begun = monotonic()
            one = run("kvatlas", work, Fleet(endpoints, routers, sharing=DELAY))
            spent = (monotonic() - begun) / len(work) * 1e6
            yield (
                str(endpoints), str(routers), f"{one.offered_rps:.0f}", waits(best), waits(one),
                f"{one.hit_share:.3f}", f"{spent:.0f}",
            )  # fmt: skip


TABLES: Mapping[str, Callable[[str], Iterator[Sequence[str]]]] = {
    "goals": goals,
    "delays": delays,
    "peers": peers,
    "scale": scale,
}


def main() -> None:
    """Print a table, row by row."""
    if len(sys.argv) != 3 or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    for number, row in enumerate(TABLES[sys.argv[1]](sys.argv[2])):
        print(f"| {' | '.join(row)} |", flush=True)
        if number == 0:
            print(f"|{' --- |' * len(row)}", flush=True)


if __name__ == "__main__":
    main()

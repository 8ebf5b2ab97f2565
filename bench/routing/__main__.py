"""Compare routers on a trace: `python -m bench.routing [--json FILE] [--quick]`.

Every run has engines, caches, index and routers of its own. Runs are interleaved: each router once
at a rate before any of them again. A run in which all processes of the machine together used more
than `--cpu-max` of it is discarded, counted and made again, `--tries` times at most.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.index.machine import load_average, prefer_redis_7
from bench.routing import report
from bench.routing.bounds import Bounds
from bench.routing.compare import Case, Comparison, Habits
from bench.routing.prompts import PromptMaker
from bench.routing.routers import ROUTERS
from bench.routing.run import Plan
from bench.routing.site import Model
from bench.routing.trace import Slice, scaled
from bench.routing.words import demo_words
from kvatlas.planner.makers import MAKERS, made
from kvatlas.planner.trace import ID_TOKENS, Record, read_trace

TRACE = Path(__file__).parents[3] / "shared/data/traces/mooncake_conversation.jsonl"
MADE_REQUESTS = 20_000
SHARES = (0.5, 0.8, 1.0)
"""Rates that are compared where none are given, as shares of the one at saturation."""


def compare(options: argparse.Namespace, console: Console) -> None:
    """Make all runs, printing as they are done."""
    begun, model = time.perf_counter(), _model(options)
    trace = _trace(options)
    bounds = Bounds(trace, model, options.ttft_limit)
    full = options.saturation or bounds.saturation(Slice(options.start, options.length, 1.0))
    rates = options.rates or [round(share * full, 2) for share in SHARES]
    figures: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "load_average_before": load_average(),
        "saturation": full,
    }
    runs = 1 if options.quick else options.runs
    habits = Habits(runs, options.tries, options.cpu_max)
    comparison = Comparison(options.routers, habits, options.json, options.keep, figures)
    maker = PromptMaker(demo_words(), options.tokens_per_id)
    cases = []
    for rate in rates[-1:] if options.quick else rates:
        part = Slice(options.start, options.length, rate)
        records = part.records(trace)
        arrivals = [scaled(each, part.due_s(each), options.tokens_per_id) for each in records]
        plan = Plan(model, arrivals, maker, options.ttft_limit, part, options.seed)
        facts = {
            "requests": len(arrivals),
            "offered_per_s": len(arrivals) / options.length,
            "hit_ceiling": bounds.ceiling(part),
            "oracle": asdict(bounds.oracle(part)),
        }
        cases.append(Case(rate, plan, facts))
    comparison.make(cases)
    for case in cases:
        title = report.title(case.rate, full, options.ttft_limit, case.facts)
        report.table(console, title, case.facts, case.runs)
    report.notes(console, comparison.reasons(), len(comparison.discarded))
    console.print(f"{time.perf_counter() - begun:.0f} s")


def _trace(options: argparse.Namespace) -> list[Record]:
    if options.made:
        return made(options.made, MADE_REQUESTS, random.Random(options.seed))
    with options.trace.open("rb") as lines:
        return read_trace(options.trace.name, lines)


def _model(options: argparse.Namespace) -> Model:
    factor = ID_TOKENS / options.tokens_per_id
    return Model(engines=options.engines, factor=factor, time_scale=options.time_scale)


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="bench.routing")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--keep", type=Path, help="folder for logs and requests of each run")
    parser.add_argument("--quick", action="store_true", help="one rate, one run")
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--rates", nargs="+", type=float,
                        help="s of the trace per s of the model")  # fmt: skip
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--made", choices=MAKERS, help="a trace of other traffic in its place")
    parser.add_argument("--start", type=float, default=600.0, help="of the slice, s of the trace")
    parser.add_argument("--length", type=float, default=120.0, help="of the slice, s of the model")
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--tokens-per-id", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--time-scale", type=float, default=6.0, help="model s per real s")
    parser.add_argument("--ttft-limit", type=float, default=5.0, help="s of the model")
    parser.add_argument("--saturation", type=float, help="rate; else the oracle says")
    parser.add_argument("--cpu-max", type=float, default=0.6, help="share of the machine")
    parser.add_argument("--tries", type=int, default=2, help="of a run that is discarded")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    prefer_redis_7()
    compare(options, Console(width=180))
    return 0


if __name__ == "__main__":
    sys.exit(main())

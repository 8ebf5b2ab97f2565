"""Compare routers on a trace: `python -m bench.routing [--json FILE] [--quick]`.

Every run has engines, caches, index and routers of its own. Runs are interleaved: each router once
at a rate before any of them again. A run in which all processes of the machine together used more
than `--cpu-max` of it is discarded, counted and made again, `--tries` times at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.index.machine import load_average, prefer_redis_7
from bench.routing import report
from bench.routing.compare import Bounds, Comparison
from bench.routing.prompts import PromptMaker
from bench.routing.routers import ROUTERS
from bench.routing.run import Plan
from bench.routing.site import Model
from bench.routing.trace import TOKENS_PER_ID, Slice, cut, hit_ceiling, read
from bench.routing.words import demo_words

TRACE = Path(__file__).parents[3] / "shared/data/traces/mooncake_conversation.jsonl"
RATES = (2.0, 3.0, 3.5)


def compare(options: argparse.Namespace, console: Console) -> None:
    """Make all runs, printing as they are done."""
    begun = time.perf_counter()
    figures: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "load_average_before": load_average(),
    }
    bounds = Bounds(options.runs, options.tries, options.cpu_max)
    comparison = Comparison(options.routers, bounds, options.json, options.keep, figures)
    lines, maker = read(options.trace), PromptMaker(demo_words(), options.tokens_per_id)
    for rate in options.rates:
        part = Slice(options.start, options.length, rate)
        arrivals = cut(lines, part, options.tokens_per_id)
        plan = Plan(_model(options), arrivals, maker, options.ttft_limit, part, options.seed)
        facts = {
            "requests": len(arrivals),
            "offered_per_s": len(arrivals) / options.length,
            "hit_ceiling": hit_ceiling(arrivals, options.tokens_per_id),
        }
        console.print(_title(rate, facts, options))
        found = comparison.at(rate, plan, facts)
        report.table(console, _title(rate, facts, options), found)
    report.notes(console, comparison.reasons(), len(comparison.discarded))
    console.print(f"{time.perf_counter() - begun:.0f} s")


def _title(rate: float, facts: dict[str, Any], options: argparse.Namespace) -> str:
    is_full = options.saturation is not None and rate >= options.saturation
    return (
        f"x{rate:g}{', at saturation' if is_full else ''}: {facts['requests']} requests, "
        f"{facts['offered_per_s']:.2f}/s; caches without bounds would hit "
        f"{facts['hit_ceiling']:.1%}; good is a first token within {options.ttft_limit:g} s"
    )


def _model(options: argparse.Namespace) -> Model:
    return Model(
        engines=options.engines,
        factor=TOKENS_PER_ID / options.tokens_per_id,
        time_scale=options.time_scale,
    )


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="bench.routing")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--keep", type=Path, help="folder for logs and requests of each run")
    parser.add_argument("--quick", action="store_true", help="one rate, one run")
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES),
                        help="seconds of the trace per second of the model")  # fmt: skip
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--start", type=float, default=600.0, help="of the slice, s of the trace")
    parser.add_argument("--length", type=float, default=120.0, help="of the slice, s of the model")
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--tokens-per-id", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--time-scale", type=float, default=6.0, help="model s per real s")
    parser.add_argument("--ttft-limit", type=float, default=5.0, help="s of the model")
    parser.add_argument("--saturation", type=float, help="rate that counts as saturation")
    parser.add_argument("--cpu-max", type=float, default=0.6, help="share of the machine")
    parser.add_argument("--tries", type=int, default=2, help="of a run that is discarded")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.rates, options.runs = options.rates[:1], 1
    prefer_redis_7()
    compare(options, Console(width=180))
    return 0


if __name__ == "__main__":
    sys.exit(main())

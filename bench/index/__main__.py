"""Measure the index and print tables: `python -m bench.index [--json FILE] [--only PART ...]`.

Without options it takes eight minutes or so. `--big` adds 10 M blocks, which take
some GB and minutes more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.index import baseline, blocking, dynamo, growth, lookups, memory, report, writes
from bench.index.fleet import running_fleet
from bench.index.machine import load_average, prefer_redis_7
from kvatlas.cli.redis_server import find_redis_server

PAIRS = 1_000_000
MANY_PAIRS = 5_000_000
BASELINE_PAIRS = 200_000
ENGINES = 64
PARTS = ("memory", "writes", "blocking", "lookups", "growth")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts, printing each as it is done."""
    console, scale = Console(width=150), options.scale
    figures: dict[str, Any] = {"redis_server": str(find_redis_server()), "scale": scale}
    figures["load_average_before"] = load_average()
    console.print(
        f"{figures['redis_server']}; load of the machine before: {load_average():.1f}; "
        f"scale {scale:g}"
    )
    others = int(PAIRS * scale)
    base = baseline.measure(int(BASELINE_PAIRS * scale), lookups.LENGTHS, ENGINES)
    figures["baseline"] = base
    parts: dict[str, Callable[[], None]] = {
        "memory": lambda: _memory(console, figures, scale),
        "writes": lambda: _writes(console, figures, scale),
        "blocking": lambda: _blocking(console, figures, others),
        "lookups": lambda: _lookups(console, figures, others),
        "growth": lambda: _growth(console, figures, options),
    }
    for part in options.only or PARTS:
        begun = time.perf_counter()
        parts[part]()
        console.print(f"{part}: {time.perf_counter() - begun:.0f} s\n", style="dim")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))
    return figures


def _memory(console: Console, figures: dict[str, Any], scale: float) -> None:
    found = memory.measure([int(PAIRS * scale), int(MANY_PAIRS * scale)])
    figures["memory"] = found
    report.memory(console, found, figures["baseline"])


def _writes(console: Console, figures: dict[str, Any], scale: float) -> None:
    figures["writes"] = writes.measure(scale)
    report.writes(console, figures["writes"], figures["baseline"])


def _blocking(console: Console, figures: dict[str, Any], blocks: int) -> None:
    figures["blocking"] = blocking.measure(blocks)
    report.blocking(console, figures["blocking"], blocks)


def _lookups(console: Console, figures: dict[str, Any], others: int) -> None:
    with running_fleet(ENGINES) as fleet:
        fleet.fill(memory.spread(ENGINES, others, seed=1))
        figures["lookups"] = lookups.measure(fleet)
        figures["at_once"] = growth.lookups_at_once(fleet)
        figures["ragged"] = lookups.measure_ragged(fleet)
    # Its copy of the other blocks: a tenth, for its queues drop what comes fast.
    figures["dynamo"] = dynamo.measure(ENGINES, lookups.LENGTHS, lookups.AT_ONCE, others // 10)
    report.lookups(console, figures["lookups"], figures["baseline"], figures["dynamo"])
    report.ragged(console, figures["ragged"])
    report.growth(console, "lookups at once", figures["at_once"])


def _growth(console: Console, figures: dict[str, Any], options: argparse.Namespace) -> None:
    numbers = [*growth.BLOCKS, *([growth.MANY_BLOCKS] if options.big else [])]
    figures["growth_endpoints"] = growth.endpoints(growth.ENDPOINTS)
    report.growth(console, "endpoints", figures["growth_endpoints"])
    figures["growth_blocks"] = growth.blocks([int(number * options.scale) for number in numbers])
    report.growth(console, "blocks", figures["growth_blocks"])


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="bench.index")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts alone")
    parser.add_argument("--big", action="store_true", help="grow to 10 M blocks")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many blocks and events")
    options = parser.parse_args()
    prefer_redis_7()
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a gateway with a picker costs: `python -m bench.gateway [--markdown FILE] [--quick]`.

As `bench.proxy`: everything runs at once, on the same engines, and is measured in turns. CPU of
Envoy and of the picker is told apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.gateway.targets import ENVOY, GATEWAYS
from bench.index.machine import BenchError, prefer_redis_7
from bench.proxy import parts, report
from bench.proxy.fleet import running_fleet

TOKENIZER: Final = Path(__file__).parents[3] / "shared/data/models/qwen3"
DIRECT: Final = "direct"
STREAMS: Final = 300
GOALS: Final = {
    "requests 1 KB c=1": "goal 600 us in the picker, 1.1 ms added; 1,500/s at c=32",
    "requests 32 KB c=1": "goal 900 us, 1.6 ms",
    "requests 128 KB c=1": "goal 1,900 us, 2.6 ms",
}
HEADS: Final = [
    "", "CPU us", "of that Envoy", "without Envoy", "p50 us", "added p50", "p99 us", "per s",
    "not 200", "CPUs in use",
]  # fmt: skip


def _sheet(case: str, runs: Mapping[str, Any]) -> report.Sheet:
    """Make the table of one case."""
    medians = {name: parts.median(made) for name, made in runs.items()}
    direct = medians.get(DIRECT)
    rows = []
    for name, found in medians.items():
        is_envoy = name == ENVOY
        own, beside = found["cpu_us"], found.get(f"{ENVOY}_us", 0.0)
        rows.append([
            name,
            f"{own + beside:,.0f}",
            f"{own if is_envoy else beside:,.0f}",
            f"{0 if is_envoy else own:,.0f}",
            f"{found['p50_us']:,.0f}",
            f"{found['p50_us'] - direct['p50_us']:,.0f}" if direct else "",
            f"{found['p99_us']:,.0f}",
            f"{found['per_s']:,.0f}",
            f"{found['bad']:,.0f}",
            f"{found['machine_cpus']:.2f}",
        ])  # fmt: skip
    goal = GOALS.get(case)
    return f"{case} ({goal})" if goal else case, HEADS, rows


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="bench.gateway")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--quick", action="store_true", help="one short round of 1 and 32 KB")
    parser.add_argument("--sizes", type=int, nargs="+", help="of bodies, KB")
    parser.add_argument("--streams", type=int, default=STREAMS, help="at once; 0 for none")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of a model")
    options = parser.parse_args()
    quick = options.quick
    sizes = options.sizes or ([1, 32] if quick else list(parts.REQUEST_SIZES))
    prefer_redis_7()
    names, console = [DIRECT, *GATEWAYS], Console(width=170)
    try:
        with tempfile.TemporaryDirectory(prefix="kvatlas-gateway-") as folder:
            known = sorted({parts.STREAM_SIZE, *sizes})
            place = Path(folder)
            with running_fleet(place, options.tokenizer, names, known, GATEWAYS) as fleet:
                count, seconds = options.rounds or (1 if quick else 3), options.seconds
                seconds = seconds or (2.0 if quick else 5.0)
                rounds = parts.Rounds(fleet, count, seconds, lambda text: print(text, flush=True))
                parts.requests(rounds, names, sizes)
                if options.streams:
                    parts.streams(rounds, names, options.streams)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    made = [_sheet(case, runs) for case, runs in rounds.runs.items()]
    report.show(console, made)
    for what, why in rounds.failures.items():
        console.print(f"not measured: {what}: {why}", markup=False)
    if options.markdown:
        options.markdown.write_text(report.markdown(made), encoding="utf-8")
    return 1 if rounds.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a router costs: `python -m bench.proxy [--json FILE] [--markdown FILE] [--quick]`.

Everything runs at once, on the same engines, and is measured in turns: each target once before
any of them again; the median of the rounds counts, with the lowest and the highest beside it. The
CPUs in use, of all that the machine has, tell of neighbours: figures of CPU suffer little from
them, latencies and throughput much.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from bench.index.machine import BenchError, load_average, prefer_redis_7
from bench.proxy import parts, report
from bench.proxy.fleet import NAMES, VARIANTS, running_fleet

TOKENIZER = Path(__file__).parents[3] / "shared/data/models/qwen3"
PARTS = ("requests", "streams", "stages", "stall")
HAVE_LOOPS = ("direct", "bare", "kvatlas")
"""Where a stall is looked for: what has one loop."""


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure and print; give the exit status."""
    begun = time.perf_counter()
    sizes = options.sizes or ([1, 32] if options.quick else list(parts.REQUEST_SIZES))
    names, known = list(options.routers), sorted({parts.STREAM_SIZE, *sizes, *_more(options)})
    if "stages" in options.only:
        names += [name for name in (parts.DEFAULT, *VARIANTS) if name not in names]
    profile: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="kvatlas-proxy-") as folder:
        place = Path(folder)
        with running_fleet(place, options.tokenizer, names, known) as fleet:
            rounds = parts.Rounds(fleet, options.rounds, options.seconds, _say)
            time.sleep(options.settle)
            profile = _measure(options, rounds, place, sizes)
    made = report.sheets(rounds.runs, profile)
    report.show(console, made)
    for what, why in rounds.failures.items():
        console.print(f"not measured: {what}: {why}", markup=False)
    console.print(f"{os.cpu_count()} CPUs, load {load_average():.1f}; "
                  f"{time.perf_counter() - begun:.0f} s")  # fmt: skip
    if options.json:
        figures = {"runs": rounds.runs, "profile": profile, "failures": rounds.failures}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(made), encoding="utf-8")
    return 1 if rounds.failures else 0


def _measure(
    options: argparse.Namespace, rounds: parts.Rounds, folder: Path, sizes: list[int]
) -> dict[str, dict[str, float]]:
    names = options.routers
    if "requests" in options.only:
        parts.requests(rounds, names, sizes)
    if "streams" in options.only:
        parts.streams(rounds, names, options.streams)
    if "stall" in options.only:
        parts.stall(rounds, [name for name in names if name in HAVE_LOOPS])
    if "stages" in options.only:
        return parts.stages(rounds, folder, sizes[:1] if options.quick else parts.STAGE_SIZES)
    return {}


def _more(options: argparse.Namespace) -> set[int]:
    """Give the sizes that engines must know beside those of requests."""
    stall = {parts.STALL_SIZE} if "stall" in options.only else set()
    return stall | (set(parts.STAGE_SIZES) if "stages" in options.only else set())


def _say(text: str) -> None:
    print(text, flush=True)


def _listed(known: tuple[str, ...]) -> type:
    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown}: not among {', '.join(known)}")
        return chosen

    return read  # type: ignore[return-value]


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="bench.proxy")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--markdown", type=Path, help="and the tables")
    parser.add_argument("--quick", action="store_true", help="one short round, without peers")
    parser.add_argument("--only", type=_listed(PARTS), help=",".join(PARTS))
    parser.add_argument("--routers", type=_listed(NAMES), help=",".join(NAMES))
    parser.add_argument("--sizes", type=int, nargs="+", help="of bodies, KB")
    parser.add_argument("--streams", type=int, default=parts.STREAMS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--settle", type=float, default=3.0, help="until indexes are filled, s")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of a model")
    options = parser.parse_args()
    quick = options.quick
    options.only = options.only or (["requests", "streams"] if quick else list(PARTS))
    options.routers = options.routers or (list(HAVE_LOOPS) if quick else list(NAMES))
    options.rounds = options.rounds or (1 if quick else 3)
    options.seconds = options.seconds or (2.0 if quick else 5.0)
    prefer_redis_7()
    try:
        return run(options, Console(width=170))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

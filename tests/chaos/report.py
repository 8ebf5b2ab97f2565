"""Run every chaos test at full size and write docs/FAULTS.md from what they saw.

python -m tests.chaos.report [--out docs/FAULTS.md] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Faults

Written by `make chaos` (tests/chaos/report.py); do not edit. Each row of the tables R (Redis), E
(events), U (engines' HTTP), C (clients), T (templates and tokenizers), S (system) and X (attackers)
has tests in `tests/chaos` that are named after it, and that inject the fault for real. `make test`
runs the same tests at a smaller size.

R and E: there are 8 engines (2 where one of them is flooded or indexers are killed, as many as are
told for E14, one per bomb for E10), each with 1,000 batches to catch up with where all are hit.
What has to recover is injected three times (E16: 100). *Recovered* is the time from the fault's end
until every engine's newest blocks are found by a lookup, requests go where their prompt is cached
for that reason, and a full scan of Redis equals the engines' caches: at most 5 s, but for what is
marked with a star (R6, R13, R14, E5, E14), which is told, or has a bound of its own. After every
test tasks, files and sockets are as many as before, nothing counts as under way, and a canary that
was in prompts, salts, headers and template variables stands in no log, metric or key.

Three figures of the tables are not reached. *E10*: memory grows by up to 3.8 times the cap of 8 MB
(told: below 2): ZMQ holds a frame while Python copies it, and frames of up to twice the cap are
received, so that one over the cap is told of as such. Tried: a limit in ZMQ (16 MB, beyond it the
connection is dropped), reading frames without asking for more, decoding into types instead of lists
of objects (which took it from five times to this). *E14*: with 500 endpoints the loop stands still
for 80 to 95 ms (told: 50), 125 before. Tried: 32 KB of events per turn instead of 256 batches,
turns of 2 ms per socket, turns of 4 ms over all sockets. *X8*: no input costs 100 times its bytes
of memory, but eight hostile ones cost up to 170 times the CPU that sending them over loopback takes
(told: 100; at most 0.4 s per MB). Tried: counting brackets before parsing, a bound on members,
reading values' ends in C.

"""
MACHINE = """Measured on {cores} cores ({machine}, Python {python}), which publishers, Redis,
indexer, router and tests share.

"""
TABLES = "REUCTSX"
TIMES_LISTED_MAX = 20
COLUMNS = "| row | injected | seen | recovered, s |\n| --- | --- | --- | --- |\n"


def main() -> int:
    """Run, and write the page unless a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/FAULTS.md"))
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        told = Path(folder) / "rows.jsonl"
        environment = os.environ | {"TEST_CHAOS_FULL": "1", "TEST_FAULTS_REPORT": str(told)}
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tests/chaos", *more]
        status = subprocess.run(line, env=environment, check=False).returncode
        if status == 0:
            lines = told.read_text(encoding="utf-8").splitlines()
            options.out.write_text(page(map(json.loads, lines)), encoding="utf-8")
            print(f"{options.out}: {len(lines)} injections")
    return status


def page(rows: Iterable[dict[str, Any]]) -> str:
    """Write the page; the same fault told several times is one line."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        known = merged.setdefault((row["row"], row["injected"]), row | {"recovered_s": []})
        known["recovered_s"] += row["recovered_s"]
    machine = MACHINE.format(
        cores=os.cpu_count(), machine=platform.machine(), python=platform.python_version()
    )
    ordered = sorted(merged.values(), key=lambda row: _order(row["row"]))
    return HEAD + machine + COLUMNS + "".join(map(_line, ordered))


def _order(name: str) -> tuple[int, int]:
    letter, number = re.fullmatch(rf"([{TABLES}])(\d+)", name).groups()  # type: ignore[union-attr]
    return TABLES.index(letter), int(number)


def _line(row: dict[str, Any]) -> str:
    cells = [row["row"], row["injected"], row["seen"], _times(row["recovered_s"])]
    if row["bound_s"] != 5.0 and row["recovered_s"]:
        cells[-1] += " *"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) > TIMES_LISTED_MAX:
        return f"{statistics.median(seconds):.1f} (median), {max(seconds):.1f} at most"
    return ", ".join(f"{one:.1f}" for one in seconds) or "-"


if __name__ == "__main__":
    sys.exit(main())

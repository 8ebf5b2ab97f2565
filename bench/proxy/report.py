"""Tables of what was measured, on the console and as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.proxy.parts import DEFAULT, median

DIRECT: Final = "direct"
RATIO_OF: Final = "vllm-router-kv-aware"
CHUNKS_PER_S: Final = 40.0
GOALS_US: Final = {"requests 1 KB": 400, "requests 32 KB": 720, "requests 128 KB": 1_800,
                   "streams 1 KB": 20}  # fmt: skip
Figures = dict[str, Any]
Rows = list[list[str]]
Sheet = tuple[str, list[str], Rows]
Runs = Mapping[str, Mapping[str, Sequence[Figures]]]


def sheets(runs: Runs, profile: Mapping[str, Mapping[str, float]]) -> list[Sheet]:
    """Make all tables: title, heads, rows."""
    found = []
    for case, by_name in runs.items():
        medians = {name: median(made) for name, made in by_name.items()}
        part = case.split()[0]
        found.append(_MAKERS[part](case, medians))
    for size, shares in profile.items():
        at = f"stages {size} c=16"
        cpu = median(runs[at][DEFAULT])["cpu_us"] if DEFAULT in runs.get(at, {}) else 0.0
        rows = [[stage, f"{share:.1%}", f"{share * cpu:,.0f}"] for stage, share in shares.items()]
        title = f"where the CPU goes at {size} (samples with the GIL held)"
        found.append((title, ["stage", "share", "us per request"], rows))
    return found


def show(console: Console, made: Sequence[Sheet]) -> None:
    """Print the tables."""
    for title, heads, rows in made:
        table = Table(title=title)
        for at, head in enumerate(heads):
            table.add_column(head, justify="right" if at else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(made: Sequence[Sheet]) -> str:
    """Write the tables for docs/PERFORMANCE.md."""
    parts = []
    for title, heads, rows in made:
        lines = [heads, ["---"] * len(heads), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{table}\n")
    return "\n".join(parts)


def _goal(case: str) -> str:
    goal = GOALS_US.get(case.rpartition(" ")[0])
    return f" (goal {goal} us of CPU)" if goal else ""


def _requests(case: str, medians: Mapping[str, Figures]) -> Sheet:
    heads = ["router", "CPU us/request", "of kvatlas", "p50 us", "added p50", "added p99",
             "requests/s", "of kv_aware", "beside us", "not 200", "CPUs in use"]  # fmt: skip
    direct, peer = medians.get(DIRECT), medians.get(RATIO_OF)
    rows = []
    for name, found in medians.items():
        rows.append([
            *_cpu(name, found, medians),
            f"{found['p50_us']:,.0f}",
            *(_added(found, direct, at) for at in ("p50_us", "p99_us")),
            f"{found['per_s']:,.0f}",
            f"{found['per_s'] / peer['per_s']:.2f}" if peer else "",
            f"{found['beside_us']:,.0f}",
            f"{found['bad']:,.0f}",
            f"{found['machine_cpus']:.2f}",
        ])  # fmt: skip
    return case + _goal(case), heads, rows


def _streams(case: str, medians: Mapping[str, Figures]) -> Sheet:
    heads = ["router", "CPU us/chunk", "of kvatlas", "p50 us", "added p50", "added p99",
             "chunks/s", "CPU share", "full at streams", "CPUs in use"]  # fmt: skip
    direct = medians.get(DIRECT)
    rows = []
    for name, found in medians.items():
        # Of one core; a router with threads gets further.
        full = 1e6 / found["cpu_us"] / CHUNKS_PER_S
        rows.append([
            *_cpu(name, found, medians),
            f"{found['p50_us']:,.0f}",
            *(_added(found, direct, at) for at in ("p50_us", "p99_us")),
            f"{found['per_s']:,.0f}",
            f"{found['share']:.0%}",
            f"{full:,.0f}",
            f"{found['machine_cpus']:.2f}",
        ])  # fmt: skip
    return case + _goal(case), heads, rows


def _stages(case: str, medians: Mapping[str, Figures]) -> Sheet:
    heads = ["settings", "CPU us/request", "of default", "against default us", "CPUs in use"]
    default = medians.get(DEFAULT)
    rows = []
    for name, found in medians.items():
        against = found["cpu_us"] - default["cpu_us"] if default else 0.0
        rows.append([
            *_cpu(name, found, medians), f"{against:+,.0f}", f"{found['machine_cpus']:.2f}",
        ])  # fmt: skip
    return case, heads, rows


def _stall(case: str, medians: Mapping[str, Figures]) -> Sheet:
    heads = ["router", "polls", "p50 us", "p99 us", "longest ms (goal 10)"]
    rows = [
        [
            name,
            f"{found['count']:,.0f}",
            f"{found['p50_us']:,.0f}",
            f"{found['p99_us']:,.0f}",
            f"{found['max_us'] / 1e3:,.1f}",
        ]
        for name, found in medians.items()
    ]
    return case, heads, rows


def _cpu(name: str, found: Figures, medians: Mapping[str, Figures]) -> list[str]:
    own = medians.get(DEFAULT)
    return [
        name,
        f"{found['cpu_us']:,.1f} ({found['low_us']:,.0f}-{found['high_us']:,.0f})",
        f"{found['cpu_us'] / own['cpu_us']:.2f}" if own else "",
    ]


def _added(found: Figures, direct: Figures | None, at: str) -> str:
    return f"{found[at] - direct[at]:,.0f}" if direct else ""


_MAKERS: Final = {"requests": _requests, "streams": _streams, "stages": _stages, "stall": _stall}

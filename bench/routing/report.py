"""Tables of a comparison: medians, and in brackets between what the runs lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.routing.figures import Spread, spreads

Figures = Mapping[str, Any]


def line(name: str, rate: float, number: int, run: Figures) -> None:
    """Print a run as soon as it is done."""
    print(
        f"  x{rate:g} run {number + 1} {name:24} hit {run['hit_share']:.1%} "
        f"TTFT {run['ttft_mean_s']:.3f} / p90 {run['ttft_p90_s']:.3f} s, "
        f"good {run['good_per_s']:.2f}/s, errors {run['errors']:.0f}, "
        f"machine {run['machine_share']:.0%}, {run['wall_s']:.0f} s",
        flush=True,
    )


def failure(name: str, reason: str) -> None:
    """Print why there is no run."""
    print(f"  {name}: {reason}", flush=True)


def title(rate: float, saturation: float, limit_s: float, facts: Figures) -> str:
    """Say what a rate's table is about."""
    return (
        f"x{rate:g}{', saturation' if rate == saturation else ''}: {facts['requests']} requests, "
        f"{facts['offered_per_s']:.2f}/s; caches without bounds would hit "
        f"{facts['hit_ceiling']:.1%}; good is a first token within {limit_s:g} s"
    )


def table(console: Console, heading: str, facts: Figures, runs: Figures) -> None:
    """Print a rate's table."""
    shown = Table(title=heading)
    shown.add_column("router")
    heads = ("runs", "hit share", "TTFT mean s", "p50", "p90", "p99", "good/s", "errors",
             "busiest engine", "router us/request", "shared us", "machine")  # fmt: skip
    for head in heads:
        shown.add_column(head, justify="right")
    bound = _bound(facts["oracle"], facts["offered_per_s"])
    shown.add_row("oracle, simulated", *bound, *[""] * (len(heads) - len(bound)))
    for name, made in runs.items():
        figures = spreads([_numbers(run) for run in made])
        shown.add_row(name, str(len(made)), *_cells(figures))
    console.print(shown)


def notes(console: Console, missing: Mapping[str, str], discarded: int) -> None:
    """Print what is missing from the tables, and why."""
    console.print(f"discarded because the machine was too busy: {discarded} runs")
    for name, reason in missing.items():
        console.print(f"{name}: {reason}")


def _numbers(run: Figures) -> dict[str, float]:
    return {name: value for name, value in run.items() if isinstance(value, int | float)}


def _cells(figures: Mapping[str, Spread]) -> list[str]:
    return [
        _percent(figures["hit_share"]),
        *(_cell(figures[f"ttft_{name}_s"], 3) for name in ("mean", "p50", "p90", "p99")),
        _cell(figures["good_per_s"], 2),
        _cell(figures["errors"], 0),
        _cell(figures["max_of_mean"], 2),
        _cell(figures["router_us_per_request"], 0),
        _cell(figures["shared_us_per_request"], 0),
        _percent(figures["machine_share"]),
    ]


def _bound(oracle: Figures, offered_per_s: float) -> list[str]:
    """Write the oracle's row, without what is of processes."""
    return [
        "",
        f"{oracle['hit_share'] * 100:.1f} %",
        *(f"{oracle[f'ttft_{name}_s']:.3f}" for name in ("mean", "p50", "p90", "p99")),
        f"{oracle['goodput'] * offered_per_s:.2f}",
        "0",
        f"{oracle['peak']:.2f}",
    ]


def _cell(spread: Spread, digits: int) -> str:
    low, high = f"{spread.low:,.{digits}f}", f"{spread.high:,.{digits}f}"
    shown = f"{spread.median:,.{digits}f}"
    return shown if low == high else f"{shown} [{low}-{high}]"


def _percent(spread: Spread) -> str:
    low, high = f"{spread.low * 100:.1f}", f"{spread.high * 100:.1f}"
    shown = f"{spread.median * 100:.1f} %"
    return shown if low == high else f"{shown} [{low}-{high}]"

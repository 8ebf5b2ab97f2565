"""The figures as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Figures = Mapping[str, Any]


def show(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; the first column is words, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def memory(console: Console, found: Figures, base: Figures) -> None:
    """Print bytes per pair."""
    cases = [(f"{count:,} pairs, a block on one endpoint", each, base["redis_bytes_per_pair"])
             for count, each in found["spread"].items()]  # fmt: skip
    shared = found["shared"]
    cases.append(("a block on all 64 endpoints", shared, base["redis_bytes_per_holder"]))
    rows = [
        [name, *_numbers(each["redis_bytes_per_pair"], each["remembered_bytes_per_pair"], theirs),
         f"{_ratio(theirs, each):.1f}", f"{each['indexer_bytes_per_pair']:,.0f}"]
        for name, each, theirs in cases
    ]  # fmt: skip
    head = (
        "memory", "Redis, bytes per pair", "of it remembered", "llm-d's schema", "ratio",
        "indexer's own",
    )  # fmt: skip
    show(console, "Memory", head, rows)


def _ratio(theirs: float, each: Figures) -> float:
    return theirs / float(each["redis_bytes_per_pair"])


def writes(console: Console, found: Figures, base: Figures) -> None:
    """Print capacity, what an event costs, and lag."""
    rows = []
    for name, each in found.items():
        most, lag, alone = each["capacity"], each["lag"], each["stages"]
        rows.append([
            name,
            *_numbers(most["blocks_per_s"], most["events_per_s"]),
            f"{most['blocks_per_s'] / base['blocks_per_s']:.1f}",
            *_numbers(most["indexer_cpu_us_per_event"], alone["decode_us"], alone["apply_us"],
                      most["redis_cpu_us_per_event"], most["others_cores"],
                      lag["p50_ms"], lag["p99_ms"], lag["others_cores"]),
        ])  # fmt: skip
    head = ("events", "blocks/s", "events/s", "x llm-d's", "indexer us", "of it decode", "apply",
            "Redis us", "others", "lag p50 ms", "p99 ms", "others")  # fmt: skip
    title = "Writes: one indexer, 8 engines; CPU per event; lag at half of it; cores of others"
    show(console, title, head, rows)


def blocking(console: Console, found: Figures, blocks: int) -> None:
    """Print what held Redis up."""
    rows = [
        [case, name, f"{each['over_1_ms']:.0f}",
         *_numbers(each["median_ms"], each["p99_ms"], each["worst_ms"])]
        for case, by_name in found.items()
        for name, each in sorted(by_name.items())
    ]  # fmt: skip
    head = ("an endpoint", "script", "calls over 1 ms", "their median, ms", "p99", "longest")
    show(console, f"SLOWLOG: {blocks:,} blocks come, are cleared and swept", head, rows)


def lookups(console: Console, found: Figures, base: Figures, dynamo: Figures) -> None:
    """Print lookups beside both yardsticks."""
    rows = []
    for length, each in found.items():
        theirs, other = base["lookups"].get(int(length)), dynamo.get(length)
        row = [f"{int(length):,} blocks", *_numbers(each["p50_ms"], *_rates(each))]
        row += [*_numbers(theirs["p50_ms"], theirs["fetch_ms"])]
        row += [f"{theirs['fetch_ms'] / each['p50_ms']:.1f}"]
        if other:
            row += _numbers(other["p50_ms"], *_rates(other), max(_rates(each)) / max(_rates(other)))
        rows.append(row)
    head = ("lookup", "p50 ms", "per s at 16", "at 64", "llm-d's p50", "of it fetching", "ratio",
            "Dynamo p50", "per s at 16", "at 64", "ratio of the best")  # fmt: skip
    show(console, "Lookups: 64 endpoints, three deep", head, rows)
    if "not_measured" in dynamo:
        console.print(f"Dynamo's indexer was not measured: {dynamo['not_measured']}")


def _rates(each: Figures) -> list[float]:
    return [each["per_s_at_16"], each["per_s_at_64"]]


def ragged(console: Console, found: Figures) -> None:
    """Print how right lookups are on sets that are not nested."""
    rows = [
        [f"{float(share):.0%} of holders ragged", f"{each['too_long_share']:.1%}",
         f"{each['too_short_share']:.1%}", f"{each['worse_choice_share']:.1%}",
         str(each["endpoints_without_a_block"])]
        for share, each in found.items()
    ]  # fmt: skip
    head = ("against a full scan", "length too long", "too short", "a worse endpoint",
            "named without a block")  # fmt: skip
    show(console, "Chains with holes and late joiners", head, rows)


def growth(console: Console, what: str, found: Figures) -> None:
    """Print one growth table; the columns are whatever was measured."""
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    rows = [[f"{int(number):,}", *(_cell(each.get(name)) for name in names)]
            for number, each in found.items()]  # fmt: skip
    show(console, f"Growth with {what}", [what, *names], rows)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _numbers(value)[0]


def _numbers(*values: float) -> list[str]:
    return [f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" for value in values]

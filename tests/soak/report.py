"""What a soak has shown: slopes of what must be flat, and what failed outside of a fault."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tests.soak.run import Place

SLOPE_MAX = 0.02
"""Growth per cycle, as a share of the median; what is below is the noise of allocators."""
COUNTED = (
    "indexer_files", "indexer_threads", "redis_connections", "router_threads"
)  # fmt: skip
POOLED = ("router_files",)
"""Kept connections of clients and engines follow the load of the moment."""
POOLED_SLOPE_MAX = 3.0
ROUTER_MB_MAX = 700
SHARE_MIN = 0.5
"""Of its core the router takes at least this in the median; less would be no load to speak of."""
COUNTED_SLOPE_MAX = 0.34
"""Of these: a cycle has three faults, so what leaks one per fault grows by three; pools that open
one connection more or less do not."""
WARM_CYCLES = 2
"""The first cycles fill caches and pools; slopes are taken after them."""


def report(place: Place, rate: float, file: Path | None) -> int:
    """Print what the cycles left behind."""
    samples = place.samples
    warm = samples[WARM_CYCLES:]
    table = Table("after each cycle", "median", "slope per cycle", "flat", title="soak")
    grew = []
    for name in samples[0].__dataclass_fields__:
        values = [float(getattr(sample, name)) for sample in warm]
        if not values:
            continue
        median, slope = statistics.median(values), _slope(values)
        is_flat = slope <= _slope_max(name, median)
        if name != "settled_s" and not is_flat:
            grew.append(name)
        flat = "" if name == "settled_s" else "yes" if is_flat else "no"
        table.add_row(name, f"{median:,.2f}", f"{slope:+.3f}", flat)
    Console().print(table)
    print(
        f"{len(samples)} cycles of an engine restart, an indexer's kill -9 and an empty Redis at "
        f"{rate:,.0f} blocks/s: the index was right after each, at most "
        f"{max(sample.settled_s for sample in samples):.2f} s after the last event; "
        f"{place.lookups:,} lookups, {place.failed_lookups:,} fell back"
    )
    if file:
        figures = {"blocks_per_s": rate, "cycles": [asdict(sample) for sample in samples]}
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(place.traffic.told())
    faults = [f"grew: {name}" for name in grew] + _traffic_faults(place)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def _traffic_faults(place: Place) -> list[str]:
    """Say what was wrong with the router's side."""
    chats = place.traffic
    faults = [f"failed outside of a fault: {told}" for told in sorted(set(chats.wrong))[:20]]
    if place.tracebacks:
        faults.append(f"{place.tracebacks} tracebacks in the router's log")
    most = max(sample.router_mb for sample in place.samples)
    if most > ROUTER_MB_MAX:
        faults.append(f"the router took {most:.0f} MB")
    if not chats.outcomes["torn"]:
        faults.append("no stream was torn: the fault was none")
    if statistics.median(chats.shares) < SHARE_MIN:
        faults.append("the router was not under load")
    return faults


def _slope_max(name: str, median: float) -> float:
    if name in COUNTED:
        return COUNTED_SLOPE_MAX
    return POOLED_SLOPE_MAX if name in POOLED else SLOPE_MAX * max(median, 1.0)


def _slope(values: list[float]) -> float:
    """Give the median of the slopes between all pairs (Theil-Sen): one odd cycle changes little."""
    slopes = [
        (later - earlier) / (at - before)
        for before, earlier in enumerate(values)
        for at, later in enumerate(values[before + 1 :], before + 1)
    ]
    return statistics.median(slopes) if slopes else 0.0

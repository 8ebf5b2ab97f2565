"""One run: fresh engines, one router, one slice of the trace; and what came of it."""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.routing.cpu import Cpu
from bench.routing.figures import Outcome, balance, latency
from bench.routing.load import Shot, drive
from bench.routing.prompts import PromptMaker
from bench.routing.routers import Route, running_router
from bench.routing.site import Engine, Model, counters, running_site
from bench.routing.trace import Arrival, Slice
from kvatlas.cli.fleet import MODEL

WAIT_S = 240.0
"""Seconds of the model after the last arrival, after which an open request has failed."""
WARM_UPS_PER_ENGINE = 3
WARM_UP_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done in a run.

    Attributes:
        limit_s: a first token within so many seconds of the model is good.
        part: which slice the arrivals are.
        seed: decides which of several routers gets a request.
    """

    model: Model
    arrivals: Sequence[Arrival]
    maker: PromptMaker
    limit_s: float
    part: Slice
    seed: int


def run_once(name: str, plan: Plan, keep: Path | None) -> dict[str, Any]:
    """Run a router's slice on a fleet of its own.

    Args:
        name: of the router.
        plan: the same for all routers.
        keep: folder that keeps the logs.

    Raises:
        BenchError: something did not start, or died.
    """
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        path = keep or Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with running_site(path, plan.model) as site, running_router(name, site) as route:
            _warm_up(plan, route)
            return _measure(plan, site.engines, route, path)


def _warm_up(plan: Plan, route: Route) -> None:
    """Open the connections and load what is loaded late, with prompts that nothing else shares."""
    arrivals = [
        Arrival(0.0, 8, 2, (-1 - number,))
        for number in range(WARM_UPS_PER_ENGINE * plan.model.engines)
    ]
    shots = [
        Shot(0.01 * number, url, plan.maker.chat(MODEL, arrival))
        for number, arrival in enumerate(arrivals)
        for url in route.urls
    ]
    outcomes = uvloop.run(drive(shots, 1.0, WARM_UP_WAIT_S))
    faults = Counter(each.fault for each in outcomes if each.fault)
    if faults:
        print(f"  warm-up: {dict(faults)}", flush=True)


def _measure(plan: Plan, engines: Sequence[Engine], route: Route, folder: Path) -> dict[str, Any]:
    scale = plan.model.time_scale
    shots = _shots(plan, route)
    groups = {
        "router": route.pids,
        "shared": route.shared_pids,
        "engines": [engine.pid for engine in engines],
        "load": [os.getpid()],
    }
    before = [counters(engine) for engine in engines]
    gc.collect()
    gc.freeze()
    cpu, begun = Cpu(groups), time.perf_counter()
    outcomes = uvloop.run(drive(shots, scale, WAIT_S / scale))
    spent, wall_s = cpu.spent(), time.perf_counter() - begun
    gc.unfreeze()
    after = [counters(engine) for engine in engines]
    grown = [{n: b[n] - a[n] for n in a} for a, b in zip(before, after, strict=True)]
    _write_outcomes(outcomes, folder)
    count = len(outcomes)
    computed = [each["queries"] - each["hits"] for each in grown]
    return {
        **latency(outcomes, plan.limit_s, plan.part.length_s),
        "hit_share": _share(grown, "hits", "queries"),
        **balance(computed),
        "requests_per_engine": [each["requests"] for each in grown],
        "computed_per_engine": computed,
        "preemptions": sum(each["preemptions"] for each in grown),
        "router_us_per_request": spent["router"] / count * 1e6,
        "shared_us_per_request": spent["shared"] / count * 1e6,
        "cores": {group: seconds / wall_s for group, seconds in spent.items()},
        "machine_share": spent["machine"] / wall_s / (os.cpu_count() or 1),
        "wall_s": wall_s,
        "faults": dict(Counter(each.fault for each in outcomes if each.fault)),
    }


def _shots(plan: Plan, route: Route) -> list[Shot]:
    draw = random.Random(plan.seed)
    return [
        Shot(
            arrival.due_s / plan.model.time_scale,
            draw.choice(route.urls),
            plan.maker.chat(MODEL, arrival),
            f"bench-{number}",
        )
        for number, arrival in enumerate(plan.arrivals)
    ]


def _share(grown: Sequence[dict[str, float]], part: str, whole: str) -> float:
    total = sum(each[whole] for each in grown)
    return sum(each[part] for each in grown) / total if total else 0.0


def _write_outcomes(outcomes: Sequence[Outcome], folder: Path) -> None:
    lines = [
        f"{each.due_s:.4f},{each.sent_s:.4f},{each.ttft_s},{each.end_s:.4f},{each.fault},"
        f"{each.prompt_tokens},{each.cached_tokens},{each.answer_tokens}"
        for each in outcomes
    ]
    head = "due_s,sent_s,ttft_s,end_s,fault,prompt_tokens,cached_tokens,answer_tokens"
    (folder / "requests.csv").write_text("\n".join([head, *lines]) + "\n")

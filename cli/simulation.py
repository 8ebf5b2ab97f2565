"""What `kvatlas simulate` does and shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from random import Random

import typer
from rich.console import Console
from rich.table import Table

from kvatlas.cli.console import messages, output, read_lines
from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import load
from kvatlas.planner import choices
from kvatlas.planner.jobs import Job, ceiling
from kvatlas.planner.plan import Cut, jobs_of, records_of
from kvatlas.planner.plot import draw
from kvatlas.planner.results import Figures, figures
from kvatlas.planner.simulation import Fleet, Outcome

HEADS = (
    "policy", "hit", "TTFT mean", "p50", "p90", "p99", "in time", "req/s", "tokens/s", "spread",
    "peak",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        policies: at least one.
        ttft_limit_s: up to which a request counts as served in time.
        config: of the routers; None for the default settings.
    """

    trace: str
    cut: Cut
    fleet: Fleet
    policies: Sequence[str]
    seed: int
    ttft_limit_s: float
    config: Path | None


def answer(question: Question, json_file: Path | None, plot: Path | None) -> None:
    """Simulate, and show and write what came of it.

    Args:
        question: what is asked.
        json_file: where the figures go, too; `-` for standard output alone.
        plot: where a picture goes.

    Raises:
        ConfigError: the operator's; something cannot be read, simulated or written.
    """
    jobs, outcomes = _simulated(question)
    found = {name: figures(outcome, question.ttft_limit_s) for name, outcome in outcomes.items()}
    best = ceiling(jobs, question.fleet.engine.block_size)
    if json_file is not None:
        _write(json_file, _as_json(question, best, found))
    if json_file is None or str(json_file) != "-":
        _show(output(), best, found)
    if plot is not None:
        draw(plot, outcomes)


def _simulated(question: Question) -> tuple[Sequence[Job], Mapping[str, Outcome]]:
    choices.known(question.policies)
    _finite(question)
    settings = load(question.config).router
    dice = Random(question.seed)  # noqa: S311 - a simulation needs no cryptography
    trace, cut = question.trace, question.cut
    records = records_of(trace, cut, dice, lambda: read_lines(Path(trace)))
    jobs = jobs_of(records, cut, question.fleet.engine, dice)
    outcomes = {}
    for name in question.policies:
        with messages().status(f"{name}: {len(jobs)} requests"):
            outcomes[name] = choices.run(
                name,
                jobs,
                question.fleet,
                lambda: Random(question.seed),  # noqa: S311 - alike
                settings,
            )
    return jobs, outcomes


def _finite(question: Question) -> None:
    """Refuse what typer lets through: a number that is none, or has no end.

    Raises:
        ConfigError: the operator's.
    """
    asked = {**asdict(question.cut), **asdict(question.fleet), **asdict(question.fleet.engine)}
    asked["ttft_limit_s"] = question.ttft_limit_s
    faults = [
        f"{name}: {value} is no number to go by"
        for name, value in asked.items()
        if isinstance(value, float) and not isfinite(value)
    ]
    if faults:
        raise ConfigError(faults)


def _as_json(question: Question, best: float, found: Mapping[str, Figures]) -> str:
    whole = {
        "trace": question.trace,
        "cut": asdict(question.cut),
        "fleet": asdict(question.fleet),
        "seed": question.seed,
        "ttft_limit_s": question.ttft_limit_s,
        "hit_ceiling": best,
        "policies": {name: asdict(each) for name, each in found.items()},
    }
    return json.dumps(whole, indent=2)


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        typer.echo(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"--json {path}: {error.strerror}"]) from None


def _show(console: Console, best: float, found: Mapping[str, Figures]) -> None:
    table = Table()
    for head in HEADS:
        table.add_column(head, justify="left" if head == HEADS[0] else "right", no_wrap=True)
    for name, one in found.items():
        table.add_row(name, *_cells(one))
    console.print(table)
    offered = next(iter(found.values())).offered_rps
    console.print(f"{offered:.2f} requests/s offered; an endless cache would hit {best:.1%}")


def _cells(one: Figures) -> tuple[str, ...]:
    waits = (one.ttft_mean_s, one.ttft_p50_s, one.ttft_p90_s, one.ttft_p99_s)
    return (
        f"{one.hit_share:.1%}",
        *(f"{wait:.3f} s" for wait in waits),
        f"{one.goodput:.1%}",
        f"{one.throughput_rps:.2f}",
        f"{one.output_tokens_per_s:.0f}",
        f"{one.spread:.3f}",
        f"{one.peak:.2f}",
    )

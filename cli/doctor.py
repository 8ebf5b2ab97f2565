"""`kvatlas doctor`: is the fleet as it should be, and if not, what is to be done?"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from kvatlas.cli.doctor_ask import Request, find_out
from kvatlas.cli.doctor_engine import block_size_of
from kvatlas.cli.doctor_events import behind
from kvatlas.cli.doctor_facts import FAULT, OK, EngineFound, EventsFound, Finding, Found
from kvatlas.cli.doctor_judge import OUTCOMES, PREDICTED, judge
from kvatlas.common.settings import Settings

WIDTH: Final = 100
NOT_REPORTED: Final = "not reported"


@dataclass(frozen=True, slots=True)
class Row:
    """One endpoint at a glance; every field is text for people.

    Attributes:
        behind: batches that the index lacks, and the indexer's lag in seconds.
        predictions: share of exact, over and under predictions.
    """

    model: str
    endpoint: str
    engine: str
    tokenizer: str
    events: str
    behind: str
    blocks: str
    predictions: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the command prints."""

    rows: Sequence[Row]
    findings: Sequence[Finding]

    @property
    def faults(self) -> int:
        """Count the faults."""
        return sum(finding.level == FAULT for finding in self.findings)


def examine(settings: Settings, request: Request) -> Report:
    """Ask everybody and judge the answers.

    Raises:
        ConfigError: a tokenizer or a key file cannot be read.
    """
    found = asyncio.run(find_out(settings, request))
    return Report(rows(found), judge(found))


def rows(found: Found) -> list[Row]:
    """Write a row per endpoint."""
    engines = {name: engine for engine in found.engines for name in engine.names}
    return [_row(events, engines[events.name], found) for events in found.events]


def _row(events: EventsFound, engine: EngineFound, found: Found) -> Row:
    version = ".".join(map(str, engine.version)) if engine.version else "answers"
    return Row(
        model=events.model,
        endpoint=events.name,
        engine="away" if engine.silence else version,
        tokenizer=engine.tokenizer.verdict if engine.tokenizer else "unasked",
        events=_events(events, engine),
        behind=_lag(events, found),
        blocks=_blocks(events, engine),
        predictions=_predictions(events.name, found),
    )


def _events(events: EventsFound, engine: EngineFound) -> str:
    if events.events is None:
        return "none"
    if engine.silence is not None:
        return "?"
    return "flowing" if events.accepts else "no"


def _lag(events: EventsFound, found: Found) -> str:
    batches = behind(events)
    texts = "?" if batches is None else str(batches)
    name = "kvatlas_indexer_lag_seconds"
    seconds = [page.samples.sum(name, endpoint=events.name) for page in found.indexers]
    told = [each for each in seconds if each is not None]
    return f"{texts} / {max(told):.1f} s" if told else texts


def _blocks(events: EventsFound, engine: EngineFound) -> str:
    size = block_size_of(engine.caches.get(events.rank, {}))
    held = f"{events.after.blocks:,}" if events.after else "?"
    return f"{held} of {size or '?'}"


def _predictions(name: str, found: Found) -> str:
    told: Counter[str] = Counter()
    for page in found.routers:
        told.update(
            {k: int(v) for k, v in page.samples.by(PREDICTED, "outcome", endpoint=name).items()}
        )
    total = sum(told.values())
    if not total:
        return NOT_REPORTED
    return " / ".join(f"{told[outcome] / total:.1%}" for outcome in OUTCOMES)


def as_json(report: Report) -> bytes:
    """Write everything, the good news too."""
    content: dict[str, Any] = {
        "faults": report.faults,
        "endpoints": [asdict(row) for row in report.rows],
        "findings": [asdict(finding) for finding in report.findings],
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2)


def show(console: Console, report: Report) -> None:
    """Print for people: the endpoints by model, then what is not as it should be."""
    for model in dict.fromkeys(row.model for row in report.rows):
        console.print(endpoints_table(model, [row for row in report.rows if row.model == model]))
    todo = [finding for finding in report.findings if finding.level != OK]
    if todo:
        console.print(findings_table(todo))
    levels = Counter(finding.level for finding in report.findings)
    console.print(f"{levels['ok']} ok, {levels['warn']} warn, {levels['fault']} fault")


def endpoints_table(model: str, group: Sequence[Row]) -> Table:
    """List a model's endpoints at a glance."""
    table = Table(title=f"endpoints of {model}", width=WIDTH)
    heads = (
        "endpoint",
        "engine",
        "tokenizer",
        "events",
        "behind",
        "blocks",
        "exact / over / under",
    )
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in group:
        table.add_row(
            row.endpoint,
            row.engine,
            row.tokenizer,
            row.events,
            row.behind,
            row.blocks,
            row.predictions,
        )
    return table


def findings_table(todo: Sequence[Finding]) -> Table:
    """List what is not as it should be, faults first, and what to do about it."""
    table = Table(title="what to do", width=WIDTH, show_lines=True)
    for head in ("level", "where", "what is so", "what to do"):
        table.add_column(head, overflow="fold")
    for finding in sorted(todo, key=lambda one: one.level != FAULT):
        table.add_row(finding.level, finding.where, finding.found, finding.advice)
    return table

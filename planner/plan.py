"""From options to jobs: which part of which trace, how fast, in blocks of what size. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from kvatlas.common.errors import ConfigError
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job, copied, make_jobs
from kvatlas.planner.makers import MAKERS, Dice, made
from kvatlas.planner.trace import ID_TOKENS, Record, read_trace
from kvatlas.router.scheduling import Chance

MADE: Final = "made:"
"""Before the name of a trace that is made."""
MADE_REQUESTS: Final = 4_000
"""Requests of a made trace where none are named."""


class Source(Chance, Dice, Protocol):
    """Where all chance comes from; `random.Random` fits."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a trace is played, and how.

    Attributes:
        requests: most of them; None for all.
        start_s, duration_s: the slice, by the trace's own clock; None for all that follows.
        speedup: arrivals come so many times as fast.
        spread_ms: arrivals are moved by up to so much by the trace's own clock, where that ticks
            in large steps.
        copies: so many of it are laid over each other.
    """

    requests: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    speedup: float = 1.0
    spread_ms: float = 0.0
    copies: int = 1


def records_of(
    name: str, cut: Cut, dice: Dice, lines: Callable[[], Iterable[bytes]]
) -> list[Record]:
    """Get the records that are played, by their own clock.

    Args:
        name: of a file, or `made:` and the name of a maker.
        cut: which of them.
        dice: for what is made, and for spreading.
        lines: reads the file.

    Raises:
        ConfigError: the operator's; the trace is wrong, unknown, or nothing of it is left.
    """
    if name.startswith(MADE):
        kind = name.removeprefix(MADE)
        if kind not in MAKERS:
            raise ConfigError([f"--trace {name}: is none of {', '.join(MADE + k for k in MAKERS)}"])
        records = made(kind, cut.requests or MADE_REQUESTS, dice)
    else:
        records = read_trace(name, lines())
    if cut.spread_ms:
        records = [replace(r, at_ms=r.at_ms + dice.random() * cut.spread_ms) for r in records]
        records.sort(key=lambda record: record.at_ms)
    first_ms = cut.start_s * 1e3
    last_ms = float("inf") if cut.duration_s is None else first_ms + cut.duration_s * 1e3
    kept = [record for record in records if first_ms <= record.at_ms < last_ms]
    if not kept:
        raise ConfigError([f"{name}: no request between --start-s and the end of --duration-s"])
    return kept[: cut.requests]


def jobs_of(records: Sequence[Record], cut: Cut, engine: EngineModel, dice: Dice) -> list[Job]:
    """Expand records to jobs that begin at 0.

    Args:
        records: as `records_of` gives them.
        cut: how they are played.
        engine: must have room for each.
        dice: for when copies begin.

    Raises:
        ConfigError: the operator's; the block size is odd, or a request does not fit.
    """
    if ID_TOKENS % engine.block_size:
        raise ConfigError([f"--block-size {engine.block_size}: does not divide {ID_TOKENS}"])
    first_ms = records[0].at_ms
    at_s = [(record.at_ms - first_ms) / 1e3 / cut.speedup for record in records]
    jobs = make_jobs(records, engine.block_size, at_s)
    if cut.copies > 1:
        shifts = [dice.random() * at_s[-1] for _ in range(cut.copies)]
        jobs = _around(copied(jobs, cut.copies, shifts), at_s[-1])
    most = max(jobs, key=lambda job: job.room_blocks)
    if most.room_blocks > engine.cache_blocks:
        what = f"a request of {most.prompt_tokens} and {most.output_tokens} tokens"
        raise ConfigError(
            [f"--cache-blocks {engine.cache_blocks}: {what} needs {most.room_blocks}"]
        )
    return jobs


def _around(jobs: Sequence[Job], span_s: float) -> list[Job]:
    """Let what would come after the end of the trace come at its beginning."""
    if span_s <= 0.0:
        return list(jobs)
    turned = sorted(jobs, key=lambda job: job.at_s % span_s)
    return [
        replace(job, number=number, at_s=job.at_s % span_s) for number, job in enumerate(turned)
    ]

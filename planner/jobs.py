"""Records become jobs, and their chains of blocks become runs. Pure.

All prompts of a trace form a tree of blocks. A run is a stretch of that tree in which no prompt
ends and none branches off, so whoever uses one block of a run uses all of it: caches and the index
count leading blocks of runs instead of holding blocks. A prompt of 750 blocks has a few runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvatlas.planner.trace import ID_TOKENS, Record


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A stretch of blocks that prompts share as a whole.

    Attributes:
        number: its identity; the same number is the same blocks after the same blocks.
        start: blocks that stand before it in every prompt.
        length: its blocks, at least one.
        parent: the run before it; None at the beginning of a prompt.
    """

    number: int
    start: int
    length: int
    parent: Run | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request to serve.

    Attributes:
        number: its place in order of arrival.
        at_s: when it arrives.
        prompt_tokens, output_tokens: at least one each.
        runs: the full blocks of its prompt.
        blocks: full blocks of its prompt.
        usable_blocks: most that a cache can serve of them: one token is always computed.
        room_blocks: blocks that it needs for prompt and output.
        output_blocks: full blocks that its output leaves in the cache. The last token that is
            generated is never computed.
    """

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    runs: tuple[Run, ...]
    blocks: int
    usable_blocks: int
    room_blocks: int
    output_blocks: int


@dataclass(slots=True, eq=False)
class _Node:
    """One id of the tree of prompts."""

    blocks: int
    ends: bool = False
    below: dict[tuple[int, int], _Node] = field(default_factory=dict)
    run: Run | None = None


def make_jobs(records: Sequence[Record], block_size: int, at_s: Sequence[float]) -> list[Job]:
    """Expand records to jobs with real blocks.

    Args:
        records: in order of arrival.
        block_size: tokens per block; divides 512.
        at_s: when each record arrives, in order.

    Cost: about 2 us per id of the trace.
    """
    paths = _grow(records, block_size)
    runs = _Runs()
    return [
        _job(number, record, (at, block_size, runs.along(path)))
        for number, (record, at, path) in enumerate(zip(records, at_s, paths, strict=True))
    ]


def _grow(records: Sequence[Record], block_size: int) -> list[list[_Node]]:
    root = _Node(0)
    return [_walk(root, record, block_size) for record in records]


def _walk(root: _Node, record: Record, block_size: int) -> list[_Node]:
    node, path = root, []
    last = len(record.hash_ids) - 1
    rest = record.prompt_tokens - last * ID_TOKENS
    for place, number in enumerate(record.hash_ids):
        # The last id stands for fewer tokens: with another number of them it is another block.
        tokens = rest if place == last else ID_TOKENS
        child = node.below.get((number, tokens))
        if child is None:
            child = node.below[(number, tokens)] = _Node(tokens // block_size)
        node = child
        path.append(node)
    node.ends = True
    return path


class _Runs:
    """Cut paths of the tree into runs; each run is made once."""

    def __init__(self) -> None:
        self._made = 0

    def along(self, path: Sequence[_Node]) -> tuple[Run, ...]:
        """Give the runs of a path from the root."""
        found: list[Run] = []
        start, held, parent = 0, 0, None
        for node in path:
            held += node.blocks
            if not (node.ends or len(node.below) > 1):
                continue
            if held:
                if node.run is None:
                    self._made += 1
                    node.run = Run(self._made, start, held, parent)
                parent = node.run
                found.append(node.run)
            start, held = start + held, 0
        return tuple(found)


def _job(number: int, record: Record, rest: tuple[float, int, tuple[Run, ...]]) -> Job:
    at_s, block_size, runs = rest
    total = record.prompt_tokens + record.output_tokens
    blocks = record.prompt_tokens // block_size
    return Job(
        number=number,
        at_s=at_s,
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        runs=runs,
        blocks=blocks,
        usable_blocks=(record.prompt_tokens - 1) // block_size,
        room_blocks=-(-total // block_size),
        output_blocks=(total - 1) // block_size - blocks,
    )


def ceiling(jobs: Iterable[Job], block_size: int) -> float:
    """Compute the share of prompt tokens that one cache without end would hit."""
    seen: set[int] = set()
    hit = asked = 0
    for job in jobs:
        asked += job.prompt_tokens
        known = sum(run.length for run in job.runs if run.number in seen)
        hit += min(known, job.usable_blocks) * block_size
        seen.update(run.number for run in job.runs)
    return hit / asked if asked else 0.0


def copied(jobs: Sequence[Job], copies: int, shift_s: Sequence[float]) -> list[Job]:
    """Lay several copies of a trace over each other, as if as many services ran side by side.

    Runs that at least half of the jobs share (a system prompt) are the same in all copies, all
    others are each copy's own.

    Args:
        jobs: of the trace.
        copies: at least one; the first is the trace itself.
        shift_s: how much later each copy begins.
    """
    users = Counter(run.number for job in jobs for run in job.runs)
    common = {number for number, count in users.items() if 2 * count >= len(jobs)}
    laid = list(jobs)
    stride = 1 + max(users, default=0)
    for copy in range(1, copies):
        own = _OwnRuns(copy * stride, common)
        laid.extend(
            replace(job, at_s=job.at_s + shift_s[copy], runs=own.of(job.runs)) for job in jobs
        )
    laid.sort(key=lambda job: job.at_s)
    return [replace(job, number=number) for number, job in enumerate(laid)]


class _OwnRuns:
    """Number the runs of a copy anew, but for those that all copies share."""

    def __init__(self, shift: int, common: set[int]) -> None:
        self._shift = shift
        self._common = common
        self._made: dict[int, Run] = {}

    def of(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """Give the copy's runs for those of the trace."""
        parent = None
        for run in runs:
            mine = self._made.get(run.number)
            if mine is None:
                number = run.number
                number += 0 if number in self._common else self._shift
                mine = self._made[run.number] = Run(number, run.start, run.length, parent)
            parent = mine
        return tuple(self._made[run.number] for run in runs)

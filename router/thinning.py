"""Long chains are read in two steps, so that Redis is not sent what it will not read. Pure.

A lookup reads a few dozen blocks of thousands, but its script has to be given all that it may
want, and pays for every byte. So the first step asks for every n-th block; the second for what
lies between two of them that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvatlas.common import limits
from kvatlas.router.holders import Held, Runs

Gap = tuple[int, int]
"""Blocks [first, end), counted from 0, that the first step has left out behind a run."""


def stride_of(blocks: int) -> int:
    """Say which blocks of a chain the first step asks for: every n-th; all of a short one."""
    if blocks <= limits.LOOKUP_WHOLE_BLOCKS_MAX:
        return 1
    return -(-blocks // limits.LOOKUP_THINNED_BLOCKS)


def widened(runs: Runs, stride: int) -> Runs:
    """Turn runs of a thinned chain into what is sure of the whole one.

    A run's last block is the last that was asked for and is in it. What follows up to the next one
    counts as the next run's.
    """
    return [((last - 1) * stride + 1, held) for last, held in runs]


def gaps_behind(runs: Runs, stride: int, blocks: int) -> list[Gap]:
    """Find where the ends of widened runs may lie; a gap may be empty."""
    return [(last, min(last + stride - 1, blocks)) for last, _ in runs]


def joined(runs: Runs, gaps: Sequence[Gap], found: Iterator[Runs]) -> Runs:
    """Put the runs of each gap behind the widened run that it follows.

    Args:
        runs: widened ones.
        gaps: as `gaps_behind` found them.
        found: runs of each gap that is not empty, in order, counted from its start.

    Returns:
        Runs up to the first block that nobody holds.
    """
    whole: list[tuple[int, Held]] = []
    for run, (first, end) in zip(runs, gaps, strict=True):
        whole.append(run)
        if first == end:
            continue
        whole += [(first + last, held) for last, held in next(found)]
        if whole[-1][0] < end:
            break
    return whole

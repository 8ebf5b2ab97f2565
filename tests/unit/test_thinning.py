"""Chains that are read in two steps: what comes out is what a reading of the whole would give."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from kvatlas.router.holders import Held, Runs
from kvatlas.router.thinning import gaps_behind, joined, stride_of, widened

Blocks = Sequence[frozenset[EndpointName]]
"""Who holds each block of a chain."""


def held_by(*numbers: int) -> frozenset[EndpointName]:
    """Name some endpoints."""
    return frozenset(EndpointName(f"{number}:1") for number in numbers)


def runs_of(blocks: Blocks) -> list[tuple[int, Held]]:
    """Read every block, as the script does with few."""
    runs: list[tuple[int, Held]] = []
    for number, endpoints in enumerate(blocks, 1):
        if not endpoints:
            break
        if runs and runs[-1][1].endpoints == endpoints:
            runs.pop()
        runs.append((number, Held(endpoints, {})))
    return runs


def read_in_two_steps(blocks: Blocks, stride: int) -> Runs:
    """Read a chain thinned, then its gaps."""
    runs = widened(runs_of(blocks[::stride]), stride)
    gaps = gaps_behind(runs, stride, len(blocks))
    found = [runs_of(blocks[first:end]) for first, end in gaps if first < end]
    return joined(runs, gaps, iter(found))


def merged(runs: Runs) -> list[tuple[int, Held]]:
    """Put neighbours that hold the same together."""
    result: list[tuple[int, Held]] = []
    for run in runs:
        if result and result[-1][1] == run[1]:
            result.pop()
        result.append(run)
    return result


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 60), st.integers(1, 20))
def test_nested_sets_are_found_to_the_block(lengths: list[int], blocks: int, stride: int) -> None:
    """Wherever endpoints' prefixes end, and whatever the stride."""
    chain = [
        held_by(*(number for number, length in enumerate(lengths) if position < length))
        for position in range(blocks)
    ]
    assert merged(read_in_two_steps(chain, stride)) == runs_of(chain)


def test_the_chain_ends_in_the_gap_where_nobody_holds_a_block() -> None:
    """What was asked for behind it does not count, though somebody holds it."""
    chain = [held_by(1)] * 4 + [held_by()] + [held_by(1, 2)] * 4
    for stride in (1, 2, 3, 5):
        assert merged(read_in_two_steps(chain, stride)) == [(4, Held(held_by(1), {}))]


def test_gaps_end_with_the_chain_and_may_be_empty() -> None:
    """The last block that is asked for may be the chain's last."""
    runs = widened([(1, Held(held_by(1, 2), {})), (3, Held(held_by(1), {}))], 4)
    assert [last for last, _ in runs] == [1, 9]
    assert gaps_behind(runs, 4, 9) == [(1, 4), (9, 9)]
    assert gaps_behind(runs, 4, 11) == [(1, 4), (9, 11)]


def test_only_long_chains_are_thinned() -> None:
    """And then to what the first step may send."""
    assert stride_of(1) == stride_of(limits.LOOKUP_WHOLE_BLOCKS_MAX) == 1
    for blocks in (limits.LOOKUP_WHOLE_BLOCKS_MAX + 1, 6_400, 65_536):
        stride = stride_of(blocks)
        assert stride > 1
        assert len(range(0, blocks, stride)) <= limits.LOOKUP_THINNED_BLOCKS

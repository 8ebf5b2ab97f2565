"""How many blocks an endpoint may hold, by what was told of its engine."""

from __future__ import annotations

import pytest

from kvatlas.common import limits
from kvatlas.common.gauges import EngineGauges, Sample, SharedSample
from kvatlas.indexer.gpu_bound import GpuBound

KEPT_S = limits.GPU_BLOCKS_KEPT_S


def sample(at_ms: int, blocks: int | None = None, *, is_up: bool = True) -> SharedSample:
    """Write what a look found."""
    return SharedSample(at_ms, 200, Sample(is_up=is_up, gauges=EngineGauges(blocks=blocks)))


@pytest.mark.parametrize(("blocks", "most"), [(24, 88), (640, 704), (10_000, 11_000)])
def test_the_bound_has_a_slack(blocks: int, most: int) -> None:
    """Expect a tenth, and 64 blocks at least."""
    bound = GpuBound()
    bound.told(sample(1, blocks), 0.0)
    assert bound.most(0.0) == most


def test_nothing_is_known_of_an_engine_that_tells_nothing() -> None:
    """Expect no bound: before the first look, without a number, and of one that is away."""
    bound = GpuBound()
    for told in (None, sample(1), sample(2, is_up=False)):
        bound.told(told, 0.0)
        assert bound.most(0.0) is None


def test_what_was_told_is_kept_for_a_while() -> None:
    """An engine that is away, or tells nothing for a moment, is not unbounded; later it is."""
    bound = GpuBound()
    bound.told(sample(1, 1_000), 0.0)
    bound.told(sample(2, is_up=False), KEPT_S - 1)
    assert bound.most(KEPT_S) == 1_100
    assert bound.most(KEPT_S + 1) is None


def test_a_sample_that_stands_there_is_told_once() -> None:
    """One that nobody renews, since nobody can look, is not believed for ever."""
    bound = GpuBound()
    for second in range(int(KEPT_S) + 2):
        bound.told(sample(7, 1_000), float(second))
    assert bound.most(KEPT_S + 1) is None


def test_the_newest_number_counts() -> None:
    """A restart with a larger cache, or a smaller one."""
    bound = GpuBound()
    for at_ms, blocks in enumerate((1_000, 5_000, 2_000)):
        bound.told(sample(at_ms, blocks), 0.0)
        assert bound.most(0.0) == blocks + blocks // 10

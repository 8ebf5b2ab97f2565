"""What an endpoint's stores tell of its KV-cache groups."""

from __future__ import annotations

import pytest

from kvatlas.common import limits
from kvatlas.common.ids import EngineHash, Pool
from kvatlas.indexer.events import BlockStored
from kvatlas.indexer.groups import Groups


def store(
    group: int = 0,
    kind: str | None = "full_attention",
    window: int | None = None,
    *,
    size: int = 4,
    medium: str = "gpu",
) -> BlockStored:
    """Write a store of one block."""
    tokens = list(range(size))
    hashes = [EngineHash(1)]
    return BlockStored(Pool(medium, group), hashes, None, tokens, size, None, [], kind, window)


def learned(*events: BlockStored) -> Groups:
    """Let groups learn."""
    groups = Groups()
    for event in events:
        groups.learn(event)
    return groups


def test_an_engine_without_groups_has_one_that_caches_all() -> None:
    """Old engines name neither group nor kind."""
    groups = learned(store(kind=None))
    assert groups.are_matchable
    assert groups.to_text() == "0=full_attention"
    assert groups.device_pools == []


def test_a_hybrid_models_groups_are_told_apart() -> None:
    """Each with its kind and window; none of it moves what is written."""
    groups = Groups()
    assert not groups.learn(store(0, "sliding_window", 64))
    assert not groups.learn(store(1))
    assert not groups.learn(store(1))
    assert groups.to_text() == "0=sliding_window/64 1=full_attention"
    assert groups.device_pools == [Pool("gpu", 0), Pool("gpu", 1)]
    assert groups.are_matchable


def test_a_group_of_an_unknown_kind_ends_all_matching() -> None:
    """And so does one that no kind is named for, until it is."""
    assert learned(store(0), store(1, "hi_sparse")).fault == "kind"
    groups = learned(store(0), store(1, None))
    assert groups.fault == "kind"
    assert groups.learn(store(1, "sliding_window", 8))
    assert groups.are_matchable


def test_a_placeholder_takes_its_kind_from_the_group() -> None:
    """An offload tier that names none is no news."""
    groups = learned(store(0), store(1, "sliding_window", 8))
    assert not groups.learn(store(1, None, medium="cpu", size=0))
    assert groups.of(Pool("cpu", 1)).kind == "sliding_window"


def test_blocks_of_different_sizes_end_all_matching() -> None:
    """Until the next epoch shows otherwise; sizes of offload tiers say nothing."""
    groups = learned(store(0))
    assert not groups.learn(store(1, "sliding_window", 8, size=16, medium="cpu"))
    assert groups.are_matchable
    assert groups.learn(store(1, "sliding_window", 8, size=8))
    assert groups.fault == "block_sizes"
    assert not groups.learn(store(1, "sliding_window", 8, size=8))
    groups.loosen()
    assert groups.are_matchable


def test_a_group_of_another_size_teaches_no_hashes() -> None:
    """Engines call its blocks by the hashes of others."""
    groups = learned(store(0, "sliding_window", 8, size=8), store(1))
    assert not groups.has_common_size(store(0, "sliding_window", 8, size=8))
    assert groups.has_common_size(store(1))


def test_a_single_group_may_change_its_size() -> None:
    """An engine without hybrid groups is followed whatever it says."""
    groups = learned(store(0), store(0, size=8))
    assert groups.are_matchable
    assert groups.has_common_size(store(0, size=8))


def test_contradictions_within_an_epoch_end_matching() -> None:
    """Two windows for one group: neither is believed; in a new epoch the newest is."""
    groups = learned(store(0), store(1, "sliding_window", 8))
    assert groups.learn(store(1, "sliding_window", 16))
    assert groups.fault == "contradiction"
    groups.loosen()
    assert groups.learn(store(1, "sliding_window", 16))
    assert groups.are_matchable
    assert groups.of(Pool("gpu", 1)).window == 16


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A liar's groups beyond the bound are not kept."""
    monkeypatch.setattr(limits, "POOLS_PER_ENDPOINT_MAX", 2)
    groups = learned(store(0), store(1), store(2))
    assert groups.to_text() == "0=full_attention 1=full_attention"

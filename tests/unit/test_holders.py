"""What lists of holders mean for matches: tiers, groups, and runs."""

from __future__ import annotations

import pytest

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, Epoch, Pool
from kvatlas.common.keyspace import Holder
from kvatlas.common.kv_groups import Tier
from kvatlas.router.holders import Held, Runs, ShardView, Spans, intersect, weigh
from kvatlas.router.windows import Need

A, B = EndpointName("a:1"), EndpointName("b:1")
WEIGHTS: dict[Tier, float] = {"gpu": 1.0, "cpu": 0.5, "disk": 0.25, "remote": 0.125}


def view(*holders: tuple[EndpointName, Pool, str]) -> ShardView:
    """Make a view in which holders have the ids 1, 2, ..."""
    fields: list[bytes] = [b"version", b"1.0"]
    for number, (name, pool, kind) in enumerate(holders, 1):
        windowed = kind != "full_attention"
        window = 8 if kind == "sliding_window" else None
        holder = Holder(name, Epoch(1), pool, kind, window, 4 if windowed else 0)
        fields += [str(number).encode(), holder.to_text().encode()]
    return ShardView(WEIGHTS, b"1.0", fields)


TIERED = (
    (A, Pool("gpu", 0), "full_attention"),
    (A, Pool("cpu", 0), "full_attention"),
    (B, Pool("gpu", 0), "full_attention"),
)


def scores(seen: ShardView, *values: bytes) -> dict[EndpointName, tuple[int, float]]:
    """Intersect single-block runs."""
    return lengths(seen, [(i, seen.full(value)) for i, value in enumerate(values, 1)])


def lengths(seen: ShardView, runs: Runs) -> dict[EndpointName, tuple[int, float]]:
    """Intersect runs."""
    found = intersect(runs, seen.epochs)
    return {name: (match.blocks, match.weighted_blocks) for name, match in found.items()}


def test_the_best_tier_counts() -> None:
    """llm-d's vector: A on 1 to 3 (3 in both tiers), B on 4 and 5, A on 6."""
    found = scores(view(*TIERED), b"1", b"1", b"1 2", b"3", b"3", b"1")
    assert found == {A: (3, 3.0)}


def test_a_block_in_the_cpu_alone_counts_less() -> None:
    """llm-d's vector: A's third block only in the host's memory."""
    assert scores(view(*TIERED), b"1", b"1", b"2", b"3") == {A: (3, 2.5)}


def test_runs_are_weighed_block_by_block() -> None:
    """A run of many blocks loses for each of them, and only as far as the match goes."""
    seen = view(*TIERED)
    runs = [(4, seen.full(b"1 3")), (10, seen.full(b"2 3")), (12, seen.full(b"3"))]
    assert lengths(seen, runs) == {A: (10, 7.0), B: (12, 12.0)}
    assert weigh(runs, A, 10) == 7.0
    assert weigh(runs, A, 5) == 4.5
    assert weigh(runs, B, 12) == 12.0


def test_media_that_are_far_or_unknown_are_remote() -> None:
    """By the engine's word or by ours."""
    seen = view(
        (A, Pool("cpu", 0, is_remote=True), "full_attention"),
        (B, Pool("tape", 0), "full_attention"),
    )
    assert scores(seen, b"1 2") == {A: (1, 0.125), B: (1, 0.125)}


def test_every_full_group_must_hold_a_block() -> None:
    """The match is the shortest over the groups, the weight the least of their best tiers."""
    seen = view(
        (A, Pool("gpu", 0), "full_attention"),
        (A, Pool("gpu", 1), "full_attention"),
        (A, Pool("cpu", 1), "full_attention"),
    )
    assert scores(seen, b"1 2", b"1 3", b"1", b"1 2") == {A: (2, 1.5)}


def test_a_kind_that_is_not_known_serves_nothing() -> None:
    """Whatever the endpoint's other groups hold."""
    seen = view((A, Pool("gpu", 0), "full_attention"), (A, Pool("gpu", 1), "hi_sparse"))
    assert scores(seen, b"1 2") == {}
    assert seen.hybrids == {}


def test_windows_are_read_as_spans() -> None:
    """Stretches read backward join where they touch; dead ids mean nothing."""
    seen = view(
        (A, Pool("gpu", 0), "sliding_window"),
        (A, Pool("cpu", 0), "sliding_window"),
        (A, Pool("gpu", 2), "full_attention"),
        (B, Pool("gpu", 1), "mamba"),
    )
    assert {name: hybrid.has_full for name, hybrid in seen.hybrids.items()} == {A: True, B: False}
    spans = Spans(seen)
    spans.prepend(4, [2, b"1", 3, b"", 6, b"2 4"])
    spans.prepend(0, [1, b"4", 3, b"99", 4, b"1 2"])
    assert spans.of(A) == [(Need(blocks=2), [(3, 6), (7, 10)])]
    assert spans.of(B) == [(Need(blocks=1), [(0, 1), (7, 10)])]


def test_what_is_no_list_of_ids_is_an_error() -> None:
    """In either kind of buckets."""
    seen = view(*TIERED)
    with pytest.raises(ValueError, match="spam"):
        seen.full(b"1 spam")
    with pytest.raises(ValueError, match="spam"):
        seen.windowed(b"spam")


def test_lists_that_were_read_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new list throws the old ones out when there are too many."""
    monkeypatch.setattr(limits, "HOLDER_VALUES_CACHED_MAX", 2)
    seen = view(*TIERED)
    for value in (b"1", b"2", b"3", b"1 2", b"1"):
        seen.full(value)
        assert len(seen._parsed) <= 2
    assert seen.full(b"1").endpoints == {A}


def test_holders_of_foreign_writers_are_left_out() -> None:
    """Neither a name that is no number nor a text that is no holder is believed."""
    fields = [b"version", b"1.0", b"spam", b"endpoint=a:1", b"7", b"spam", b"8", b"\xff"]
    seen = ShardView(WEIGHTS, b"1.0", fields)
    assert seen.epochs == {}
    assert seen.full(b"7 8") == Held(frozenset(), {})


def test_who_has_dropped_out_loses_no_more() -> None:
    """Slow tiers behind the end of a match do not weigh on it."""
    seen = view(*TIERED)
    runs = [(2, seen.full(b"1 3")), (3, seen.full(b"3")), (9, seen.full(b"2 3"))]
    assert lengths(seen, runs) == {A: (2, 2.0), B: (9, 9.0)}

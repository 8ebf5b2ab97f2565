"""What a hit needs of groups with windows, beside a plain search over all lengths."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.router.windows import Need, Span, longest_hit, need_of

LENGTH = 14

held = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)
needs = st.one_of(
    st.builds(Need, blocks=st.one_of(st.none(), st.integers(1, 6))),
    st.builds(Need, chunk_tokens=st.integers(1, 24), block_size=st.just(4)),
)


def spans_of(blocks: Sequence[bool], low: int = 0) -> list[Span]:
    """Write what is held from `low` on as spans."""
    spans: list[Span] = []
    for number in range(low, len(blocks)):
        if blocks[number]:
            if spans and spans[-1][1] == number:
                spans[-1] = (spans[-1][0], number + 1)
            else:
                spans.append((number, number + 1))
    return spans


def serves(need: Need, blocks: Sequence[bool], hit: int) -> bool:
    """Say by the definition whether a group can serve a hit."""
    if need.chunk_tokens is not None:
        first = hit * need.block_size // need.chunk_tokens * need.chunk_tokens // need.block_size
    elif need.blocks is None:
        first = 0
    else:
        first = max(0, hit - need.blocks)
    return all(blocks[first:hit])


def plainly(most: int, groups: Sequence[tuple[Need, Sequence[bool]]]) -> int:
    """Try every length, the longest first."""
    for hit in range(most, 0, -1):
        if all(serves(need, blocks, hit) for need, blocks in groups):
            return hit
    return 0


@given(st.integers(0, LENGTH), st.lists(st.tuples(needs, held), min_size=1, max_size=4))
def test_the_hit_is_the_longest_that_every_group_can_serve(
    most: int, groups: list[tuple[Need, list[bool]]]
) -> None:
    """Cutting down until all agree finds what trying every length finds."""
    spans = [(need, spans_of(blocks)) for need, blocks in groups]
    assert longest_hit(most, 0, spans) == plainly(most, groups)


@given(
    st.integers(0, LENGTH),
    st.integers(1, LENGTH),
    st.lists(st.tuples(needs, held), min_size=1, max_size=4),
)
def test_what_was_not_read_is_never_guessed(
    most: int, low: int, groups: list[tuple[Need, list[bool]]]
) -> None:
    """From a part of the blocks the answer is the right one or none."""
    spans = [(need, spans_of(blocks, low)) for need, blocks in groups]
    found = longest_hit(most, low, spans)
    assert found is None or found == plainly(most, groups)


@pytest.mark.parametrize(
    ("kind", "window", "size", "need"),
    [
        ("sliding_window", 64, 32, Need(blocks=2)),
        ("sliding_window", 65, 32, Need(blocks=2)),
        ("sliding_window", 66, 32, Need(blocks=3)),
        ("sliding_window_mla", 128, 16, Need(blocks=8)),
        ("sliding_window", 1, 16, Need(blocks=1)),
        ("sliding_window", None, 16, Need()),
        ("sliding_window", 64, 0, Need()),
        ("mamba", None, 0, Need(blocks=1)),
        ("chunked_local_attention", 64, 16, Need(chunk_tokens=64, block_size=16)),
        ("chunked_local_attention", None, 16, Need()),
        ("full_attention", 64, 16, Need()),
    ],
)
def test_needs_by_kind(kind: str, window: int | None, size: int, need: Need) -> None:
    """A window of w tokens needs the blocks of w - 1; what is not told needs everything."""
    assert need_of(kind, window, size) == need


def test_a_short_prompt_needs_only_what_there_is() -> None:
    """Fewer blocks than the window spans serve when they reach back to the start."""
    assert longest_hit(3, 0, [(Need(blocks=8), [(0, 3)])]) == 3
    assert longest_hit(3, 0, [(Need(blocks=8), [(1, 3)])]) == 0


def test_a_chunk_begins_anew() -> None:
    """A hit that ends where a chunk ends needs nothing of the group."""
    need = Need(chunk_tokens=8, block_size=4)
    assert longest_hit(3, 0, [(need, [])]) == 2
    assert longest_hit(3, 0, [(need, [(2, 3)])]) == 3
    assert longest_hit(3, 3, [(need, [])]) is None

"""Counts of moments that are over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.router.recent_counts import KEPT_S, RecentCounts


@given(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 9)), max_size=40),
    st.floats(0.0, KEPT_S),
    st.floats(0.0, 1.0),
)
def test_the_most_of_a_span_is_what_a_full_list_says(
    steps: list[tuple[float, int]], back_s: float, span_s: float
) -> None:
    """Expect the highest count that held at any time in it, within what is kept."""
    recent, now_s = RecentCounts(), 0.0
    notes: list[tuple[float, int]] = [(float("-inf"), 0)]
    for pause_s, count in steps:
        now_s += pause_s
        recent.note(now_s, count)
        notes.append((now_s, count))
    from_s = now_s - back_s
    to_s = from_s + span_s
    ends = [*(since for since, _ in notes[1:]), float("inf")]
    held = [
        count
        for (since, count), end in zip(notes, ends, strict=True)
        if since <= to_s and end > from_s
    ]
    assert recent.most(from_s, to_s) == max(held)


def test_what_is_over_is_forgotten() -> None:
    """Expect a count that changes for ever to take no more room."""
    recent = RecentCounts()
    for n in range(1_000):
        recent.note(n / 10, n)
    assert len(recent._changes) <= KEPT_S * 10 + 2

"""Retries take a share of what is under way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvatlas.router.retry_budget import RetryBudget


def test_three_may_always_be() -> None:
    """Expect the fourth to wait for one to end."""
    budget = RetryBudget(0.2, 3)
    assert [budget.take(1) for _ in range(4)] == [True, True, True, False]
    budget.give_back()
    assert budget.take(1)


def test_of_many_a_fifth_may_be() -> None:
    """Expect twenty of a hundred."""
    budget = RetryBudget(0.2, 3)
    assert sum(budget.take(100) for _ in range(50)) == 20


@given(
    share=st.floats(0, 1),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 1_000)), max_size=100),
)
def test_never_more_than_share_or_minimum(share: float, steps: list[tuple[bool, int]]) -> None:
    """Expect no retry to begin at or above the bound, and the count never to be negative."""
    budget = RetryBudget(share, 3)
    for takes, requests in steps:
        if takes:
            granted = budget.take(requests)
            assert not granted or budget.under_way <= max(3, share * requests)
        elif budget.under_way:
            budget.give_back()
        assert budget.under_way >= 0

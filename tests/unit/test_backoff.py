"""Pauses that grow."""

from __future__ import annotations

from kvatlas.common.backoff import Backoff


def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    """Each is shorter by a share that is drawn."""
    draws = iter([0.0, 1.0, 0.0, 0.0, 0.0])
    backoff = Backoff(1.0, 5.0, 0.5, lambda: next(draws))
    assert [backoff.pause_s() for _ in range(4)] == [1.0, 1.0, 4.0, 5.0]
    backoff.reset()
    assert backoff.pause_s() == 1.0

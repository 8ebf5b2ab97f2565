"""When something that fails is left alone, and when it is tried again."""

from __future__ import annotations

from kvatlas.router.breaker import Breaker


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


def test_it_is_left_alone_after_failures_in_a_row() -> None:
    """An answer between them begins the count anew."""
    breaker = Breaker(2, 1.0, Clock())
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.lets_through()
    breaker.failed()
    assert not breaker.lets_through()


def test_one_request_tries_again_after_the_pause() -> None:
    """It keeps the others out until it has an answer."""
    clock = Clock()
    breaker = Breaker(1, 1.0, clock)
    breaker.failed()
    clock.now += 1.0
    assert breaker.lets_through()
    assert not breaker.lets_through()
    breaker.succeeded()
    assert breaker.lets_through()


def test_what_failed_together_counts_once() -> None:
    """A stall of a moment, in which many questions were under way, is one failure."""
    clock = Clock()
    breaker = Breaker(2, 1.0, clock)
    asked_at, clock.now = clock.now, clock.now + 0.02
    for _ in range(10):
        breaker.failed(asked_at)
    assert breaker.lets_through()
    breaker.failed(clock.now)
    assert not breaker.lets_through()

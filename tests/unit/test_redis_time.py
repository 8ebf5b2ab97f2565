"""Stamps of Redis in our own time."""

from __future__ import annotations

import pytest

from kvatlas.router.redis_time import WINDOW_S, RedisTime


def test_what_is_read_late_was_written_early() -> None:
    """Expect the time of writing once one entry has been read at once."""
    clock = RedisTime()
    assert clock.local(1_000.0, 5.0) == 5.0
    assert clock.local(1_001.0, 6.2) == pytest.approx(6.0)


def test_it_is_never_in_the_future() -> None:
    """Expect now of an entry that seems to be of later, as after a change of servers."""
    clock = RedisTime()
    clock.local(1_000.0, 5.0)
    assert clock.local(2_000.0, 6.0) == 6.0


def test_a_server_whose_clock_is_behind_is_believed_in_the_end() -> None:
    """Expect the old difference to be forgotten after two windows."""
    clock = RedisTime()
    clock.local(1_000.0, 5.0)
    for step in range(1, 4):
        now_s = 5.0 + step * (WINDOW_S + 1.0)
        at_s = clock.local(900.0 + now_s, now_s)
    assert at_s == pytest.approx(now_s)

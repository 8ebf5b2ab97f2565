"""When an endpoint's hits are announced, and when copies are counted."""

from __future__ import annotations

from kvatlas.common import limits
from kvatlas.indexer.relearning import Relearning

NOW = 100.0
END = NOW + limits.RELEARN_S
COUNTS = END + limits.RELEARN_GRACE_S


def started(seq: int) -> Relearning:
    """Begin an epoch with a batch."""
    relearning = Relearning()
    relearning.new_epoch()
    relearning.batch(seq, NOW, is_oldest=True)
    return relearning


def test_an_epoch_that_begins_with_the_engine_knows_all() -> None:
    """Nothing is asked for and every copy counts."""
    relearning = started(0)
    assert relearning.asks_s(NOW) == 0
    assert relearning.counts(0)


def test_an_epoch_that_begins_later_is_blind_to_what_was_before() -> None:
    """Hits are asked for for a while; copies count again when the last may have come."""
    relearning = started(7)
    relearning.batch(8, COUNTS - 1, is_oldest=True)
    assert relearning.asks_s(NOW) == limits.RELEARN_S
    assert relearning.asks_s(END) == 0
    assert not relearning.counts(8)
    relearning.batch(9, COUNTS, is_oldest=True)
    assert relearning.counted_from == 9
    assert not relearning.counts(8)
    assert relearning.counts(9)


def test_an_engine_that_was_cleared_has_nothing_to_be_learned() -> None:
    """Routers stop asking at once, and copies count."""
    relearning = started(7)
    relearning.cleared(8)
    assert relearning.asks_s(NOW) == 0
    assert relearning.counts(9)


def test_a_new_life_ends_it() -> None:
    """Whatever the reason of the epoch is: only a new life begins with the first batch again."""
    relearning = started(7)
    relearning.new_epoch()
    relearning.batch(0, NOW + 1, is_oldest=True)
    assert relearning.asks_s(NOW + 1) == 0
    assert relearning.counts(0)


def test_a_replay_that_failed_says_nothing_of_what_is_missing() -> None:
    """A later one may bring all, and with it what was announced meanwhile."""
    relearning = Relearning()
    relearning.new_epoch()
    relearning.batch(7, NOW, is_oldest=False)
    assert relearning.asks_s(NOW) == 0
    assert relearning.counts(7)
    relearning.cleared(90)
    relearning.new_epoch()
    relearning.batch(3, NOW, is_oldest=False)
    assert relearning.counts(3)


def test_another_owner_goes_on_where_one_stopped() -> None:
    """With what is left of the time, and without counting until then."""
    relearning = Relearning()
    relearning.resume(None, 5.0, NOW)
    relearning.batch(9, NOW + 5.0, is_oldest=True)
    assert not relearning.counts(9)
    assert relearning.asks_s(NOW + 1) == 4.0
    relearning.batch(10, NOW + 5.0 + limits.RELEARN_GRACE_S, is_oldest=True)
    assert relearning.counts(10)

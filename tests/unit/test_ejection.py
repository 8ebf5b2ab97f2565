"""Who is left out for failing: never too many, never for ever, never in step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.router.ejection import Pool, Rules, Standing

RULES = Rules()


def pool(count: int, rules: Rules = RULES, draw: float = 0.0) -> tuple[Pool, list[Standing]]:
    """Make a pool whose jitter is known."""
    made, members = Pool(rules, lambda: draw), [Standing() for _ in range(count)]
    for member in members:
        made.join(member)
    return made, members


def fail(of: Pool, member: Standing, times: int, now_s: float = 0.0) -> list[str | None]:
    """Let requests fail one after the other."""
    return [of.failed(member, now_s) for _ in range(times)]


def test_five_failures_in_a_row_eject() -> None:
    """Expect the fifth to, and the endpoint to be out for thirty seconds."""
    made, (one, *_) = pool(4)
    assert fail(made, one, 5) == [None, None, None, None, "failures"]
    assert (one.takes, one.is_ejected, one.is_away, one.until_s) == (False, True, False, 30.0)


def test_a_success_between_failures_makes_them_count_anew() -> None:
    """Expect nine failures with one success in the middle to eject nobody."""
    made, (one, *_) = pool(4)
    fail(made, one, 4)
    one.succeeded()
    assert fail(made, one, 4) == [None] * 4
    assert one.takes


def test_half_of_twenty_ejects_and_half_of_less_does_not() -> None:
    """Expect every second request to fail without harm until there are twenty of them."""
    made, (one, *_) = pool(4)
    found = []
    for _ in range(10):
        one.succeeded()
        found.append(made.failed(one, 0.0))
    assert found == [None] * 9 + ["share"]


def test_what_is_older_than_the_latest_requests_does_not_count() -> None:
    """Expect failures to be forgotten after as many successes as are kept."""
    made, (one, *_) = pool(4)
    for _ in range(4):
        fail(made, one, 4)
        one.succeeded()
    for _ in range(limits.OUTCOMES_KEPT):
        one.succeeded()
    assert fail(made, one, 4) == [None] * 4


def test_pauses_grow_and_are_bounded() -> None:
    """Expect thirty seconds times n, five minutes at most, and less again after a good while."""
    made, (one, *_) = pool(2)
    now_s, pauses = 0.0, []
    for _ in range(12):
        fail(made, one, 5, now_s)
        pauses.append(one.until_s - now_s)
        now_s = one.until_s
        assert made.answered(one, now_s)
    assert pauses == [min(30.0 * n, 300.0) for n in range(1, 13)]
    fail(made, one, 5, now_s + 30.0 * 11)
    assert one.until_s - (now_s + 30.0 * 11) == 60.0
    made.answered(one, one.until_s)
    fail(made, one, 5, one.until_s + 3_600.0)
    assert one.ejections == 1


@pytest.mark.parametrize(("draw", "pause_s"), [(0.0, 30.0), (0.5, 27.0), (1.0, 24.0)])
def test_pauses_are_spread(draw: float, pause_s: float) -> None:
    """Expect up to a fifth less, never more than the bound."""
    made, (one, *_) = pool(2, draw=draw)
    fail(made, one, 5)
    assert one.until_s == pytest.approx(pause_s)


def test_who_is_ejected_returns_with_an_answer_when_its_time_is_over() -> None:
    """Expect an answer before that to change nothing, and the past not to count after it."""
    made, (one, *_) = pool(2)
    fail(made, one, 5)
    found = [(made.answered(one, now_s), one.takes) for now_s in (29.9, 30.0)]
    assert found == [(False, False), (True, True)]
    assert fail(made, one, 4, 31.0) == [None] * 4


def test_another_process_is_not_judged_by_the_former_one() -> None:
    """Expect a restarted engine back at once."""
    made, (one, *_) = pool(2)
    fail(made, one, 5)
    assert made.answered(one, 1.0, is_new=True)
    assert one.takes


def test_who_does_not_answer_is_away_until_it_does() -> None:
    """Expect the third time to count, and one answer to end it."""
    made, (one, two) = pool(2)
    found = [made.unanswered(one) for _ in range(4)]
    assert found == [None, None, "unreachable", None]
    assert (one.takes, two.takes, made.is_all_away) == (False, True, False)
    assert made.answered(one, 0.0)
    assert not made.answered(one, 0.0)
    assert one.takes


def test_who_is_alone_is_never_ejected() -> None:
    """Expect one that fails to be better than none."""
    made, (one,) = pool(1)
    assert fail(made, one, 50) == [None] * 50
    assert one.takes


def test_any_number_may_be_away() -> None:
    """Expect nobody to take requests, and the pool to say so."""
    made, members = pool(3)
    for member in members:
        for _ in range(limits.UNANSWERED_MAX):
            made.unanswered(member)
    assert made.is_all_away
    assert not any(member.takes for member in members)


def test_nobody_is_not_all_away() -> None:
    """Expect an empty pool to say nothing of the sort."""
    assert not pool(0)[0].is_all_away


def test_in_a_panic_ejections_do_not_count() -> None:
    """Expect ejected endpoints to be asked while fewer than half are left, not who is away."""
    made, members = pool(4)
    for member in members[:2]:
        fail(made, member, 5)
    assert [member.takes for member in members] == [False, False, True, True]
    for _ in range(limits.UNANSWERED_MAX):
        made.unanswered(members[2])
    seen = [(made.is_panicking, *(member.takes for member in members))]
    made.answered(members[2], 1.0)
    seen.append((made.is_panicking, *(member.takes for member in members)))
    assert seen == [(True, True, True, False, True), (False, False, False, True, True)]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.sampled_from(("failed", "failed", "failed", "succeeded", "unanswered", "answered")),
        st.floats(0, 40),
        st.integers(1, 6),
    ),
    max_size=150,
)


@given(count=st.integers(1, 7), most=st.floats(0, 0.5), steps=STEPS, draw=st.floats(0, 0.999))
def test_whatever_happens_the_bounds_hold(
    count: int, most: float, steps: list[tuple[int, str, float, int]], draw: float
) -> None:
    """Expect half at most to be ejected, pauses within bounds, and somebody to take requests."""
    made, members = pool(count, Rules(ejected_max=most), draw)
    now_s = 0.0
    for which, what, later_s, times in steps:
        member = members[which % count]
        now_s += later_s
        for _ in range(times):
            before = sum(each.is_out for each in members if each is not member)
            match what:
                case "failed":
                    if made.failed(member, now_s) is not None:
                        assert before + 1 <= most * count
                        pause_s = member.until_s - now_s
                        assert 24.0 <= pause_s + 1e-6 <= 300.0 + 1e-5
                case "succeeded":
                    member.succeeded()
                case "unanswered":
                    made.unanswered(member)
                case _:
                    made.answered(member, now_s)
        assert sum(each.is_ejected for each in members) <= count / 2
        there = [each for each in members if not each.is_out]
        assert made.is_panicking == (len(there) < count / 2)
        for each in members:
            assert each.takes == (not each.is_away and (made.is_panicking or not each.is_ejected))
        assert made.is_all_away or any(each.takes for each in members)

"""Whatever a plugin does, the request is answered, and what it did wrong is told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.router.scheduling import (
    Candidate,
    EvenScorer,
    Guarded,
    MaxScorePicker,
    Profile,
    Weighted,
    Work,
)
from kvatlas.router.scheduling.guard import clamped
from tests.fakes.scheduling import FIRST, Busy, Faults, candidates

WORK = Work(1_000)
THREE = candidates(*[(0, Busy())] * 3)
RAISES = object()


@dataclass(frozen=True, slots=True)
class Answers:
    """A plugin of all kinds that answers the same to everything, or raises."""

    answer: Any

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Any:  # noqa: ARG002 - interface
        """Answer."""
        return self._answer()

    def score(self, work: Work, candidates: Sequence[Candidate]) -> Any:  # noqa: ARG002 - interface
        """Answer."""
        return self._answer()

    def order(self, work: Work, scores: Sequence[float], chance: object) -> Any:  # noqa: ARG002 - interface
        """Answer."""
        return self._answer()

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> Any:  # noqa: ARG002 - interface
        """Answer."""
        return self._answer()

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:  # noqa: ARG002 - interface
        """Answer to nobody."""
        self._answer()

    def _answer(self) -> Any:
        if self.answer is RAISES:
            raise LookupError("on purpose")
        return self.answer() if callable(self.answer) else self.answer


def held(answer: Any) -> tuple[Guarded, Faults]:
    """Hold a stranger's plugin in check."""
    faults = Faults()
    return Guarded(Answers(answer), "odd", faults.report), faults


@pytest.mark.parametrize(
    ("answer", "scores", "fault"),
    [
        ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], None),
        ((0, 1, True), [0.0, 1.0, 1.0], None),
        ([], [], None),
        ([1.5, -0.5, 0.5], [1.0, 0.0, 0.5], "range"),
        ([math.nan, math.inf, -math.inf], [0.0, 1.0, 0.0], "range"),
        ([0.5, math.nan, 0.5], [0.5, 0.0, 0.5], "range"),
        ([1.0, 1.0], [], "count"),
        ([1.0] * 4, [], "count"),
        (lambda: itertools.repeat(1.0), [], "count"),
        (["a", "b", "c"], [], "raised"),
        (None, [], "raised"),
        (RAISES, [], "raised"),
    ],
)
def test_scores_are_made_good(answer: Any, scores: list[float], fault: str | None) -> None:
    """Expect scores in [0, 1] or no opinion, and each fault to be told once."""
    guarded, faults = held(answer)
    assert list(guarded.score(WORK, THREE)) == scores
    assert [told[:2] for told in faults.told] == ([] if fault is None else [("odd", fault)])


@pytest.mark.parametrize(
    ("answer", "kept", "fault"),
    [
        ([0, 2], [0, 2], None),
        ([2, 0], [0, 2], None),
        ({1}, [1], None),
        ([], [], None),
        ([0, 0], [0, 1, 2], "positions"),
        ([3], [0, 1, 2], "positions"),
        ([-1], [0, 1, 2], "positions"),
        (itertools.count, [0, 1, 2], "positions"),
        ([0.0], [0, 1, 2], "raised"),
        (["e0"], [0, 1, 2], "raised"),
        (RAISES, [0, 1, 2], "raised"),
    ],
)
def test_filters_are_passed_over_where_they_talk_nonsense(
    answer: Any, kept: list[int], fault: str | None
) -> None:
    """Expect the positions in order, or everybody."""
    guarded, faults = held(answer)
    assert list(guarded.keep(WORK, THREE)) == kept
    assert [told[:2] for told in faults.told] == ([] if fault is None else [("odd", fault)])


@pytest.mark.parametrize(
    ("answer", "order", "fault"),
    [
        ([2, 0, 1], [2, 0, 1], None),
        ([0], [0, 2, 1], "positions"),
        ([0, 0, 0], [0, 2, 1], "positions"),
        ([7, 1, -1], [1, 2, 0], "positions"),
        ([], [2, 1, 0], "positions"),
        ([0, 1, 2, 0], [0, 1, 2], "positions"),
        ("no", [2, 1, 0], "raised"),
        (RAISES, [2, 1, 0], "raised"),
    ],
)
def test_orders_are_completed(answer: Any, order: list[int], fault: str | None) -> None:
    """Expect every position once: the picker's first, then from the best score to the worst."""
    guarded, faults = held(answer)
    assert list(guarded.order(WORK, [0.1, 0.2, 0.3], FIRST)) == order
    assert [told[:2] for told in faults.told] == ([] if fault is None else [("odd", fault)])


@pytest.mark.parametrize(
    ("answer", "terms", "fault"),
    [
        ([{"a": 1}, {}, {"b": math.nan}], [{"a": 1.0}, {}, {}], None),
        ([{}], [{}] * 3, "count"),
        ([{"a": "x"}] * 3, [{}] * 3, "raised"),
        (RAISES, [{}] * 3, "raised"),
    ],
)
def test_terms_are_finite_numbers_or_nothing(
    answer: Any, terms: list[dict[str, float]], fault: str | None
) -> None:
    """Expect what can be shown, and nothing where the plugin fails."""
    guarded, faults = held(answer)
    assert list(guarded.terms(WORK, THREE)) == terms
    assert [told[:2] for told in faults.told] == ([] if fault is None else [("odd", fault)])


def test_what_is_raised_is_told_by_its_type() -> None:
    """Expect the exception itself to be handed on, from every method."""
    guarded, faults = held(RAISES)
    guarded.note(WORK, THREE, 0)
    guarded.score(WORK, THREE)
    assert faults.told == [("odd", "raised", "LookupError")] * 2


def test_a_plugin_that_neither_explains_nor_remembers_is_left_alone() -> None:
    """Expect no fault where there is nothing to call."""
    faults = Faults()
    guarded = Guarded(EvenScorer(), "even", faults.report)
    assert list(guarded.terms(WORK, THREE)) == [{}] * 3
    guarded.note(WORK, THREE, 0)
    assert faults.told == []


def test_a_stranger_cannot_change_what_the_others_see() -> None:
    """Expect it to be given what it cannot reorder."""
    seen = []

    class Sorts:
        """A scorer that wants to sort its candidates."""

        def score(self, _work: Work, candidates: Sequence[Candidate]) -> Iterable[float]:
            """Try it."""
            seen.append(type(candidates))
            candidates.reverse()  # type: ignore[attr-defined]
            return [1.0] * len(candidates)

    known, faults = list(THREE), Faults()
    Guarded(Sorts(), "sorts", faults.report).score(WORK, known)
    assert known == THREE
    assert seen == [tuple]
    assert faults.told == [("sorts", "raised", "AttributeError")]


def test_one_of_ours_that_fails_is_contained_as_well() -> None:
    """Expect the same of a bug of our own, but no look at every score."""
    for answer, opinion in ((RAISES, []), ([1.0], []), ([9.0] * 3, [9.0] * 3)):
        faults = Faults()
        guarded = Guarded(Answers(answer), "ours", faults.report, is_trusted=True)
        assert list(guarded.score(WORK, THREE)) == opinion
        assert len(faults.told) == (0 if opinion else 1)
    broken = Guarded(Answers(RAISES), "ours", Faults().report, is_trusted=True)
    assert list(broken.keep(WORK, THREE)) == [0, 1, 2]
    assert list(broken.order(WORK, [0.1, 0.3, 0.2], FIRST)) == [1, 2, 0]


@given(st.floats())
def test_a_clamped_score_is_one(score: float) -> None:
    """Expect a number in [0, 1], and the score itself where it is one."""
    found = clamped(score)
    assert 0.0 <= found <= 1.0
    if 0.0 <= score <= 1.0:
        assert found == score


NUMBERS = st.one_of(st.integers(-3, 9), st.floats(), st.none(), st.text(max_size=2))
ANSWERS = st.one_of(st.lists(NUMBERS, max_size=8), NUMBERS, st.just(RAISES))


@given(
    answers=st.tuples(ANSWERS, ANSWERS, ANSWERS, ANSWERS),
    count=st.integers(0, 6),
    unhealthy=st.sets(st.integers(0, 5)),
)
def test_an_order_is_a_permutation_whatever_plugins_do(
    answers: tuple[Any, Any, Any, Any], count: int, unhealthy: set[int]
) -> None:
    """Expect each candidate once, scores in [0, 1], terms and notes without an exception."""
    filters, first, second, picker = (held(answer)[0] for answer in answers)
    known = candidates(*((0, Busy(healthy=i not in unhealthy)) for i in range(count)))
    scorers = [Weighted(first), Weighted(second, 2.0), Weighted(EvenScorer())]
    profile = Profile([filters], scorers, picker)
    ranking = profile.run(WORK, known, FIRST)
    assert sorted(ranking.order) == list(range(count))
    assert len(ranking.scores) == count
    assert all(0.0 <= score <= 1.0 + 1e-9 for score in ranking.scores)
    assert len(profile.terms(WORK, known)) == count
    if count:
        profile.note(WORK, known, ranking.order[0])


def test_a_profile_of_nothing_but_broken_plugins_still_chooses() -> None:
    """Expect everybody alike, ties at random."""
    profile = Profile([held(RAISES)[0]], [Weighted(held(RAISES)[0])], held(RAISES)[0])
    assert sorted(profile.run(WORK, THREE, FIRST).order) == [0, 1, 2]
    assert (
        MaxScorePicker().order(WORK, [1.0] * 3, FIRST)[0]
        == profile.run(WORK, THREE, FIRST).order[0]
    )

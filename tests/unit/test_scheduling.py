"""Scheduling: who gets a request, from what is known alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.ids import EndpointName
from kvatlas.router.scheduling import (
    BestScorePicker,
    Candidate,
    CostScorer,
    Draw,
    EvenScorer,
    HealthyFilter,
    Profile,
    RequestScorer,
    Score,
    Weighted,
    Work,
)
from kvatlas.router.scheduling.scorers import HINT_TOKENS, WAITING_TOKENS

RATE = 1_000.0
"""Tokens per second: one token is one millisecond."""
WORK = Work(1_000)


@dataclass(frozen=True, slots=True)
class Busy:
    """A load as a test wants it."""

    healthy: bool = True
    requests: int = 0
    pending_tokens: int = 0
    others_running: int = 0
    others_waiting: int = 0
    kv_usage: float = 0.0


IDLE = Busy()
COST = CostScorer(RATE, 4.0)


def candidates(*known: tuple[int, Busy]) -> list[Candidate]:
    """Make candidates `e0`, `e1`, ... of (match tokens, load)."""
    return [Candidate(EndpointName(f"e{i}"), *each) for i, each in enumerate(known)]


def first(_ties: int) -> int:
    """Settle every tie for the first."""
    return 0


def last(ties: int) -> int:
    """Settle every tie for the last."""
    return ties - 1


def chosen(scorer: CostScorer, *known: tuple[int, Busy], draw: Draw = last) -> int:
    """Give the position of the candidate that a profile with this scorer chooses."""
    profile = Profile([HealthyFilter()], [Weighted(scorer)], BestScorePicker())
    return profile.run(WORK, candidates(*known), draw).order[0]


# --- the cost -----------------------------------------------------------------------------------


def test_the_terms_of_the_cost_follow_the_formula() -> None:
    """Expect each term to be what the table in the module says, in milliseconds."""
    load = Busy(requests=2, pending_tokens=300, others_running=8, others_waiting=1, kv_usage=0.95)
    (score,) = COST.score(WORK, candidates((400, load)))
    assert score.terms == {
        "prefill_ms": pytest.approx(600),
        "work_ms": pytest.approx(2_400),
        "queue_ms": pytest.approx(300 + WAITING_TOKENS),
        "decode_ms": pytest.approx(2 * 4 + 8 / 2),
        "cache_ms": pytest.approx(3.0),
    }
    assert score.value == 1.0


def test_a_score_is_the_least_cost_over_the_own() -> None:
    """Expect 1 for the cheapest, and the ratio of costs for the others."""
    scores = COST.score(WORK, candidates((500, IDLE), (0, IDLE), (750, IDLE)))
    assert [score.value for score in scores] == [0.5, 0.25, 1.0]


def test_without_any_cost_everybody_scores_one() -> None:
    """Expect costs of zero to be a tie at the top, not a division by zero."""
    scores = COST.score(Work(0), candidates((0, IDLE), (0, IDLE)))
    assert [score.value for score in scores] == [1.0, 1.0]


def test_nobody_has_no_score() -> None:
    """Expect an empty list for no candidates."""
    assert COST.score(WORK, []) == []


def test_a_match_beyond_the_prompt_costs_nothing() -> None:
    """Expect no negative prefill when an estimate of the prompt is below the match."""
    (score,) = COST.score(Work(10), candidates((500, IDLE)))
    assert score.terms["prefill_ms"] == 0.0


@pytest.mark.parametrize(("usage", "cost"), [(0.0, 0.0), (0.9, 0.0), (1.0, 6.0), (7.0, 6.0)])
def test_the_cache_costs_only_when_it_is_nearly_full(usage: float, cost: float) -> None:
    """Expect nothing up to 0.9, and no more than the bound above 1."""
    (score,) = COST.score(WORK, candidates((0, Busy(kv_usage=usage))))
    assert score.terms["cache_ms"] == pytest.approx(cost)


# --- a quiet fleet ------------------------------------------------------------------------------


@given(
    rate=st.floats(1.0, 1e9),
    price=st.floats(0.0, 100.0),
    prompt=st.integers(17, 1_000_000),
    block=st.sampled_from([16, 32, 128]),
    running=st.integers(0, 100_000),
    usage=st.floats(0.0, 1.0),
)
def test_stale_gauges_never_outweigh_one_block(  # noqa: PLR0917 - one argument per strategy
    rate: float, price: float, prompt: int, block: int, running: int, usage: float
) -> None:
    """Expect the warm endpoint even when old gauges show it full and the others idle."""
    match = min(block, prompt - 1)
    warm = Busy(others_running=running, kv_usage=usage)
    known = candidates((0, IDLE), (match, warm))
    cold, hot = CostScorer(rate, price).score(Work(prompt), known)
    assert hot.value == 1.0
    assert cold.value < 1.0


def test_the_hints_are_below_the_smallest_block() -> None:
    """Expect the bound that the proof above rests on."""
    assert HINT_TOKENS < 16


# --- load against matches -----------------------------------------------------------------------


def test_a_long_queue_outweighs_a_short_match() -> None:
    """Expect the idle endpoint when what is queued at the warm one costs more than the match."""
    assert chosen(COST, (32, Busy(requests=1, pending_tokens=5_000)), (0, IDLE)) == 1


def test_a_long_match_outweighs_a_short_queue() -> None:
    """Expect the warm endpoint when its queue is shorter than what it saves."""
    assert chosen(COST, (900, Busy(requests=1, pending_tokens=400)), (0, IDLE)) == 0


def test_the_price_on_work_holds_on_to_a_match_for_longer() -> None:
    """Expect the same queue to be worth waiting in only when work has a price."""
    warm, cold = (500, Busy(requests=1, pending_tokens=900)), (0, IDLE)
    assert chosen(CostScorer(RATE, 0.0), warm, cold) == 1
    assert chosen(CostScorer(RATE, 4.0), warm, cold) == 0


def test_others_that_wait_count_as_whole_requests() -> None:
    """Expect an endpoint where others queue to be left to them."""
    assert chosen(COST, (160, Busy(others_waiting=2)), (0, IDLE)) == 1


def test_among_equal_matches_the_less_busy_wins() -> None:
    """Expect own and others' running requests each to tip an even balance."""
    assert chosen(COST, (0, IDLE), (0, Busy(requests=1))) == 0
    assert chosen(COST, (0, Busy(others_running=31)), (0, Busy(others_running=32))) == 0


@given(
    matches=st.lists(st.integers(0, 1_000), min_size=1, max_size=8),
    pending=st.lists(st.integers(0, 10_000), min_size=8, max_size=8),
)
def test_scores_are_in_range_and_the_best_is_one(matches: list[int], pending: list[int]) -> None:
    """Expect every score in [0, 1], one of them 1, and a lower cost never to score less."""
    known = candidates(
        *((m, Busy(pending_tokens=p)) for m, p in zip(matches, pending, strict=False))
    )
    scores = COST.score(WORK, known)
    assert all(0.0 <= score.value <= 1.0 for score in scores)
    assert max(score.value for score in scores) == 1.0
    by_cost = sorted(scores, key=lambda score: sum(score.terms.values()))
    assert [s.value for s in by_cost] == sorted((s.value for s in scores), reverse=True)


# --- the other scorers --------------------------------------------------------------------------


def test_least_load_counts_requests_and_ignores_matches() -> None:
    """Expect (1 + fewest) / (1 + own), whoever holds the prompt."""
    known = candidates(
        (900, Busy(requests=2, others_running=1)),
        (0, Busy(requests=1)),
        (0, Busy(others_waiting=4)),
    )
    scores = RequestScorer().score(WORK, known)
    assert [score.value for score in scores] == [0.5, 1.0, 0.4]
    assert [score.terms for score in scores] == [{"requests": n} for n in (3.0, 1.0, 4.0)]


def test_least_load_of_nobody_is_nothing() -> None:
    """Expect an empty list for no candidates."""
    assert RequestScorer().score(WORK, []) == []


def test_round_robin_leaves_all_to_the_draw() -> None:
    """Expect turns when everybody scores the same and the draw counts."""
    profile = Profile([], [Weighted(EvenScorer())], BestScorePicker())
    known = candidates((900, IDLE), (0, Busy(requests=9)), (0, IDLE))
    turns = iter(range(6))
    picked = [profile.run(WORK, known, lambda n: next(turns) % n).order[0] for _ in range(6)]
    assert picked == [0, 1, 2, 0, 1, 2]


# --- filters, pickers, profiles -----------------------------------------------------------------


def test_the_unhealthy_are_left_out_while_others_are_healthy() -> None:
    """Expect positions of the healthy only."""
    known = candidates((0, Busy(healthy=False)), (0, IDLE), (0, Busy(healthy=False)))
    assert list(HealthyFilter().keep(WORK, known)) == [1]


def test_when_nobody_is_healthy_everybody_stays() -> None:
    """Expect a wrong guess about health not to stop the fleet."""
    known = candidates((0, Busy(healthy=False)), (0, Busy(healthy=False)))
    assert list(HealthyFilter().keep(WORK, known)) == [0, 1]


def test_the_picker_orders_by_score_and_draws_among_the_best() -> None:
    """Expect the drawn one of the best first, then the others from good to bad."""
    scores = [0.5, 1.0, 0.7, 1.0]
    assert BestScorePicker().order(scores, first) == [1, 3, 2, 0]
    assert BestScorePicker().order(scores, last) == [3, 1, 2, 0]


def test_a_single_best_is_not_drawn() -> None:
    """Expect no draw where there is no tie, so that turns are not wasted."""

    def refuse(_ties: int) -> int:
        raise AssertionError("drawn without a tie")

    assert BestScorePicker().order([0.1, 0.9], refuse) == [1, 0]


def test_the_picker_of_nobody_gives_nobody() -> None:
    """Expect an empty order for no scores."""
    assert BestScorePicker().order([], first) == []


def test_a_filtered_candidate_scores_zero_and_is_tried_last() -> None:
    """Expect the longest match not to help an endpoint that does not answer."""
    profile = Profile([HealthyFilter()], [Weighted(COST)], BestScorePicker())
    ranking = profile.run(
        WORK, candidates((999, Busy(healthy=False)), (0, IDLE), (500, IDLE)), first
    )
    assert list(ranking.order) == [2, 1, 0]
    assert ranking.scores[0] == Score(0.0, {})
    assert [score.value for score in ranking.scores] == [0.0, 0.5, 1.0]


@dataclass(frozen=True, slots=True)
class Keep:
    """A filter that keeps fixed positions."""

    positions: Sequence[int]

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the fixed positions."""
        return self.positions


@dataclass(frozen=True, slots=True)
class Fixed:
    """A scorer that gives fixed scores under a term of its own."""

    term: str
    values: Sequence[float]

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:  # noqa: ARG002 - interface
        """Give the fixed scores."""
        return [Score(value, {self.term: value}) for value in self.values]


def test_filters_work_on_what_the_one_before_left() -> None:
    """Expect positions of later filters to be read among the kept, and mapped back."""
    profile = Profile([Keep([1, 2, 3]), Keep([0, 2])], [Weighted(EvenScorer())], BestScorePicker())
    ranking = profile.run(WORK, candidates(*[(0, IDLE)] * 4), first)
    assert list(ranking.order) == [1, 3, 0, 2]


def test_several_scorers_make_a_weighted_mean_and_show_all_terms() -> None:
    """Expect (3 x 1 + 1 x 0) / 4 and the other way round, and both names of terms."""
    scorers = [Weighted(Fixed("a", [1.0, 0.0]), 3.0), Weighted(Fixed("b", [0.0, 1.0]))]
    ranking = Profile([], scorers, BestScorePicker()).run(
        WORK, candidates((0, IDLE), (0, IDLE)), first
    )
    assert [score.value for score in ranking.scores] == [0.75, 0.25]
    assert ranking.scores[0].terms == {"a": 1.0, "b": 0.0}
    assert list(ranking.order) == [0, 1]

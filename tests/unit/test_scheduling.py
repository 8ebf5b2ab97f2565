"""Scheduling: who gets a request, from what is known alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import NoEndpoints
from kvatlas.common.ids import EndpointName
from kvatlas.router.scheduling import (
    Candidate,
    Chance,
    CostScorer,
    EvenScorer,
    HealthyFilter,
    MaxScorePicker,
    Profile,
    RequestScorer,
    RoundRobinPicker,
    Weighted,
    Work,
)
from kvatlas.router.scheduling.cost import (
    HINT_TOKENS,
    SESSION_SHARE,
    SESSION_TOKENS,
    WAITING_TOKENS,
)
from tests.fakes.scheduling import FIRST, LAST, TOKEN_S, Busy, candidates

WORK = Work(1_000)
FULL = Work(1_000, pressure=4.0)
"""In a fleet where four requests wait per endpoint, so that work costs four times its time."""
IDLE = Busy()
COST = CostScorer(work_price_least=0.0)


def chosen(work: Work, *known: tuple[int, Busy], chance: Chance = LAST) -> int:
    """Give the position of the candidate that the default profile chooses."""
    profile = Profile([HealthyFilter()], [Weighted(COST)], MaxScorePicker())
    return profile.run(work, candidates(*known), chance).order[0]


def prices(work: Work, *held: int, scorer: CostScorer = COST) -> list[float]:
    """Give what work costs idle candidates that hold so many tokens, in milliseconds."""
    return [
        terms["work_ms"] for terms in scorer.terms(work, candidates(*((n, IDLE) for n in held)))
    ]


# --- the cost -----------------------------------------------------------------------------------


def test_the_terms_of_the_cost_follow_the_formula() -> None:
    """Expect each term to be what the table in the module says, in milliseconds."""
    load = Busy(
        requests=2,
        queued_tokens=300,
        others_running=8,
        others_waiting=1,
        kv_usage=0.95,
        base_s=0.007,
    )
    terms, _ = COST.terms(FULL, candidates((400, load), (900, IDLE)))
    assert terms == {
        "base_ms": pytest.approx(7),
        "queue_ms": pytest.approx(300),
        "others_ms": pytest.approx(WAITING_TOKENS),
        "prefill_ms": pytest.approx(600),
        "work_ms": pytest.approx(4 * 500),
        "join_ms": 0.0,
        "decode_ms": pytest.approx(2 * 32 + 8 / 2),
        "cache_ms": pytest.approx(3.0),
    }


@given(
    matches=st.lists(st.integers(0, 1_200), min_size=2, max_size=6),
    queued=st.integers(0, 5_000),
    others=st.integers(0, 50),
    usage=st.floats(0.0, 1.0),
    work=st.builds(
        Work,
        prompt_tokens=st.just(1_000),
        trust=st.floats(0.0, 1.0),
        pressure=st.floats(0.0, 10.0),
        is_matched=st.booleans(),
        session=st.sampled_from([None, EndpointName("e1")]),
    ),
)
def test_scores_are_made_of_the_terms(
    matches: list[int], queued: int, others: int, usage: float, work: Work
) -> None:
    """Expect a score to be the least sum of terms over the own, whatever is known."""
    loads = [
        Busy(
            requests=i,
            queued_tokens=queued * i,
            others_running=others,
            others_waiting=i // 2,
            kv_usage=usage,
            base_s=0.001,
        )
        for i in range(len(matches))
    ]
    known = candidates(*zip(matches, loads, strict=True))
    sums = [sum(terms.values()) for terms in COST.terms(work, known)]
    assert COST.score(work, known) == pytest.approx([min(sums) / each for each in sums])


# --- the price of work --------------------------------------------------------------------------


def test_only_what_somebody_holds_is_computed_again() -> None:
    """Expect what nobody holds to cost nothing: it must be computed wherever the request goes."""
    assert prices(FULL, 0, 0) == [0.0, 0.0]
    assert prices(FULL, 300, 100, 0) == pytest.approx([0.0, 4 * 200, 4 * 300])


def test_work_costs_what_it_keeps_from_those_that_wait() -> None:
    """Expect nothing in an idle fleet, as much as wait per endpoint in a full one, six at most."""
    told = [prices(Work(1_000, pressure=n), 100, 0)[1] for n in (0.0, 0.5, 4.0, 6.0, 60.0)]
    assert told == pytest.approx([0, 50, 400, 600, 600])
    half = CostScorer(0.5, work_price_max=1.0)
    assert prices(Work(1_000, pressure=1.0), 100, 0, scorer=half)[1] == pytest.approx(50)
    assert prices(FULL, 100, 0, scorer=half)[1] == pytest.approx(100)


def test_who_joins_a_step_delays_all_in_it() -> None:
    """Expect the own tokens for each that waits in the last step of the queue."""

    def joined(prompt: int, awaiting: int, queued: int) -> float:
        load = Busy(requests=awaiting, awaiting=awaiting, queued_tokens=queued)
        (terms,) = COST.terms(Work(prompt), candidates((0, load)))
        return terms["join_ms"]

    assert joined(100, 0, 0) == 0.0
    assert joined(100, 10, 2_000) == pytest.approx(10 * 100)
    assert joined(100_000, 10, 2_000) == pytest.approx(10 * 4_096)
    assert joined(100, 10, 81_920) == pytest.approx(10 * 100 / 30)


def test_work_has_a_least_price() -> None:
    """Expect a burst on an idle fleet to find work not free, by default."""
    assert prices(Work(1_000), 100, 0, scorer=CostScorer())[1] == pytest.approx(25)


def test_the_price_does_not_fade_with_trust() -> None:
    """Expect a blind router to save as much work as one that sees."""
    told = [prices(replace(FULL, trust=trust), 100, 0)[1] for trust in (1.0, 0.5, 0.0)]
    assert told == pytest.approx([400, 400, 400])


def test_what_many_hold_is_shared_out_among_them() -> None:
    """Expect the price in as many parts as endpoints hold at least half of what is lost."""
    assert prices(FULL, 800, 0) == pytest.approx([0, 4 * 800])
    assert prices(FULL, 800, 800, 0) == pytest.approx([0, 0, 4 * 800 / 2])
    assert prices(FULL, 800, 400, 399, 0)[3] == pytest.approx(4 * 800 / 2)
    # To the third what is lost lies above 400, and half of that ends at 600.
    assert prices(FULL, 800, 599, 400)[2] == pytest.approx(4 * 400)
    assert prices(FULL, 800, 600, 400)[2] == pytest.approx(4 * 400 / 2)


def test_a_hot_prefix_spreads() -> None:
    """Expect the same queue at all that hold it to be waited in while few do, and not when many."""
    warm = (900, Busy(requests=1, queued_tokens=2_000))
    assert chosen(FULL, (0, IDLE), warm) == 1
    assert chosen(FULL, (0, IDLE), *[warm] * 4) == 0


def test_what_is_about_to_be_cached_counts_as_cached() -> None:
    """Expect the longer of match and prediction to be taken off the prompt."""
    known = [Candidate(EndpointName("e0"), 100, 700, IDLE)]
    assert COST.terms(WORK, known)[0]["prefill_ms"] == pytest.approx(300)


def test_a_score_is_the_least_cost_over_the_own() -> None:
    """Expect 1 for the cheapest, and the ratio of costs for the others."""
    scores = COST.score(WORK, candidates((500, IDLE), (0, IDLE), (750, IDLE)))
    assert scores == [0.5, 0.25, 1.0]


def test_without_any_cost_everybody_scores_one() -> None:
    """Expect costs of zero to be a tie at the top, not a division by zero."""
    assert COST.score(Work(0), candidates((0, IDLE), (0, IDLE))) == [1.0, 1.0]


def test_beside_one_that_costs_nothing_the_others_score_nothing() -> None:
    """Expect 0 where the least cost is 0 and the own is not."""
    assert COST.score(Work(0), candidates((0, IDLE), (0, Busy(requests=1)))) == [1.0, 0.0]


def test_nobody_has_no_score() -> None:
    """Expect an empty list for no candidates."""
    assert COST.score(WORK, []) == []


def test_a_match_beyond_the_prompt_costs_nothing() -> None:
    """Expect no negative prefill when an estimate of the prompt is below the match."""
    (terms,) = COST.terms(Work(10), candidates((500, IDLE)))
    assert terms["prefill_ms"] == 0.0
    assert COST.score(Work(10), candidates((500, IDLE))) == [1.0]


@pytest.mark.parametrize(("usage", "cost"), [(0.0, 0.0), (0.9, 0.0), (1.0, 6.0), (7.0, 6.0)])
def test_the_cache_costs_only_when_it_is_nearly_full(usage: float, cost: float) -> None:
    """Expect nothing up to 0.9, and no more than the bound above 1."""
    (terms,) = COST.terms(WORK, candidates((0, Busy(kv_usage=usage))))
    assert terms["cache_ms"] == pytest.approx(cost)


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
    """Expect the warm endpoint, even when old gauges show it full and a session is elsewhere."""
    match, token_s = min(block, prompt - 1), 1.0 / rate
    warm = Busy(others_running=running, kv_usage=usage, token_s=token_s)
    known = candidates((0, Busy(token_s=token_s)), (match, warm))
    work = Work(prompt, session=EndpointName("e0"), pressure=1.0)
    cold, hot = CostScorer(price).score(work, known)
    assert hot == 1.0
    assert cold < 1.0


def test_the_hints_are_below_the_smallest_block() -> None:
    """Expect the bound that the proof above rests on."""
    assert HINT_TOKENS < 16


# --- load against matches -----------------------------------------------------------------------


def test_a_long_queue_outweighs_a_short_match() -> None:
    """Expect the idle endpoint when what is queued at the warm one costs more than the match."""
    assert chosen(WORK, (32, Busy(requests=1, queued_tokens=5_000)), (0, IDLE)) == 1


def test_a_long_match_outweighs_a_short_queue() -> None:
    """Expect the warm endpoint when its queue is shorter than what it saves."""
    assert chosen(WORK, (900, Busy(requests=1, queued_tokens=400)), (0, IDLE)) == 0


def test_the_price_on_work_holds_on_to_a_match_for_longer() -> None:
    """Expect the same queue to be worth waiting in only while the fleet is busy."""
    warm, cold = (500, Busy(requests=1, queued_tokens=900)), (0, IDLE)
    assert chosen(WORK, warm, cold) == 1
    assert chosen(FULL, warm, cold) == 0


def test_others_that_wait_count_as_whole_requests() -> None:
    """Expect an endpoint where others queue to be left to them."""
    assert chosen(WORK, (160, Busy(others_waiting=2)), (0, IDLE)) == 1


def test_among_equal_matches_the_less_busy_wins() -> None:
    """Expect own and others' running requests each to tip an even balance."""
    short = replace(WORK, prompt_tokens=16)
    assert chosen(short, (0, Busy(requests=1)), (0, IDLE)) == 1
    assert chosen(short, (0, Busy(others_running=8)), (0, Busy(others_running=4))) == 1


@given(
    matches=st.lists(st.integers(0, 1_000), min_size=1, max_size=8),
    pending=st.lists(st.integers(0, 10_000), min_size=8, max_size=8),
)
def test_scores_are_in_range_and_the_best_is_one(matches: list[int], pending: list[int]) -> None:
    """Expect every score in [0, 1], one of them 1, and a lower cost never to score less."""
    known = candidates(
        *((m, Busy(requests=1, queued_tokens=p)) for m, p in zip(matches, pending, strict=False))
    )
    scores = COST.score(WORK, known)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert max(scores) == 1.0
    sums = [sum(terms.values()) for terms in COST.terms(WORK, known)]
    by_cost = [scores[i] for i in sorted(range(len(sums)), key=sums.__getitem__)]
    assert by_cost == pytest.approx(sorted(scores, reverse=True))


# --- sessions -----------------------------------------------------------------------------------


def test_a_session_settles_a_tie() -> None:
    """Expect the endpoint of the conversation where nothing else tells candidates apart."""
    for name in ("e0", "e1", "e2"):
        work = Work(1_000, session=EndpointName(name))
        scores = COST.score(work, candidates(*[(0, IDLE)] * 3))
        assert scores.index(1.0) == int(name[1])
        assert scores.count(1.0) == 1


def test_a_session_is_worth_next_to_nothing_where_matches_are_known() -> None:
    """Expect one token's worth, in its own term, and nothing else to change."""
    known = candidates((0, IDLE), (0, IDLE))
    idle, at_home = COST.terms(Work(1_000, session=EndpointName("e1")), known)
    assert idle["session_ms"] == 0.0
    assert at_home["session_ms"] == pytest.approx(-SESSION_TOKENS * TOKEN_S * 1e3)
    del idle["session_ms"], at_home["session_ms"]
    assert [idle, at_home] == COST.terms(WORK, known)


def test_without_matches_the_endpoint_of_the_conversation_is_taken_to_hold_most() -> None:
    """Expect it to win over a short queue, and to lose to one longer than what it saves."""
    home = EndpointName("e0")
    work = Work(1_000, session=home, is_matched=False)
    saved = round(SESSION_SHARE * 1_000)
    for queued, best in ((saved - 100, 0), (saved + 100, 1)):
        known = candidates((0, Busy(requests=1, queued_tokens=queued)), (0, IDLE))
        assert COST.score(work, known)[best] == 1.0
    assert COST.terms(work, known)[0]["prefill_ms"] == pytest.approx(1_000 - saved)
    # And what it is taken to hold has its price elsewhere, like any match.
    busy = replace(work, pressure=1.0)
    assert COST.terms(busy, known)[1]["work_ms"] == pytest.approx(saved)


def test_a_session_makes_no_cost_negative() -> None:
    """Expect a whole match on the endpoint of the conversation to cost nothing, not less."""
    for is_matched in (True, False):
        work = Work(10, session=EndpointName("e0"), is_matched=is_matched)
        (terms,) = COST.terms(work, candidates((10, IDLE)))
        assert sum(terms.values()) == 0.0


def test_a_session_that_is_not_there_changes_nothing() -> None:
    """Expect the same scores with an endpoint that is no candidate."""
    known = candidates((0, IDLE), (100, IDLE))
    elsewhere = replace(WORK, session=EndpointName("e9"))
    assert COST.score(elsewhere, known) == COST.score(WORK, known)


# --- the other scorers --------------------------------------------------------------------------


def test_least_load_counts_requests_and_ignores_matches() -> None:
    """Expect (1 + fewest) / (1 + own), whoever holds the prompt."""
    known = candidates(
        (900, Busy(requests=2, others_running=1)),
        (0, Busy(requests=1)),
        (0, Busy(others_waiting=4)),
    )
    scores = RequestScorer().score(WORK, known)
    assert scores == [0.5, 1.0, 0.4]
    assert RequestScorer().terms(WORK, known) == [{"requests": n} for n in (3.0, 1.0, 4.0)]


def test_least_load_of_nobody_is_nothing() -> None:
    """Expect an empty list for no candidates."""
    assert RequestScorer().score(WORK, []) == []


def test_round_robin_takes_turns() -> None:
    """Expect the candidate whose turn it is, whatever it holds and does."""
    profile = Profile([], [Weighted(EvenScorer())], RoundRobinPicker())
    known = candidates((900, IDLE), (0, Busy(requests=9)), (0, IDLE))
    picked = [profile.run(Work(1, turn=turn), known, FIRST).order[0] for turn in range(6)]
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


def test_a_filtered_candidate_scores_zero_and_is_tried_last() -> None:
    """Expect the longest match not to help an endpoint that does not answer."""
    profile = Profile([HealthyFilter()], [Weighted(COST)], MaxScorePicker())
    known = candidates((999, Busy(healthy=False)), (0, IDLE), (500, IDLE))
    ranking = profile.run(WORK, known, FIRST)
    assert list(ranking.order) == [2, 1, 0]
    assert ranking.scores == [0.0, 0.5, 1.0]


@dataclass(frozen=True, slots=True)
class Keep:
    """A filter that keeps fixed positions."""

    positions: Sequence[int]
    is_hard: bool = False

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the fixed positions."""
        return self.positions


@dataclass(frozen=True, slots=True)
class Fixed:
    """A scorer that gives fixed scores under a term of its own."""

    term: str
    values: Sequence[float]

    def score(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[float]:  # noqa: ARG002 - interface
        """Give the fixed scores."""
        return self.values

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:  # noqa: ARG002 - interface
        """Give the fixed scores as terms."""
        return [{self.term: value} for value in self.values]


FOUR = candidates(*[(0, IDLE)] * 4)


def order_of(*filters: Keep) -> list[int]:
    """Give the order of four equal candidates behind filters."""
    profile = Profile(filters, [Weighted(EvenScorer())], MaxScorePicker())
    return list(profile.run(WORK, FOUR, FIRST).order)


def test_filters_work_on_what_the_one_before_left() -> None:
    """Expect positions of later filters to be read among the kept, and mapped back."""
    assert order_of(Keep([1, 2, 3]), Keep([0, 2]))[:2] == [1, 3]


def test_who_came_further_is_asked_before_who_was_left_out_earlier() -> None:
    """Expect what the last filter left out ahead of what the first did."""
    assert order_of(Keep([1, 2, 3]), Keep([0, 2])) == [1, 3, 2, 0]


def test_a_filter_that_leaves_nobody_does_not_count() -> None:
    """Expect all to stay in the running."""
    assert sorted(order_of(Keep([]))) == [0, 1, 2, 3]


def test_who_a_hard_filter_leaves_out_is_not_even_tried() -> None:
    """Expect them nowhere in the order, though a filter before had only left them behind."""
    assert order_of(Keep([1, 3], is_hard=True)) == [1, 3]
    # Hard ones run first: positions of the other are among the two that are left.
    assert order_of(Keep([1]), Keep([1, 3], is_hard=True)) == [3, 1]


def test_hard_filters_that_leave_nobody_refuse_the_request() -> None:
    """Expect the error that is answered with 503."""
    with pytest.raises(NoEndpoints):
        order_of(Keep([], is_hard=True))


def test_nobody_to_choose_from_is_no_error() -> None:
    """Expect an empty ranking of no candidates."""
    profile = Profile([HealthyFilter()], [Weighted(COST)], MaxScorePicker())
    assert list(profile.run(WORK, [], FIRST).order) == []


def test_several_scorers_make_a_weighted_mean_and_show_all_terms() -> None:
    """Expect (3 x 1 + 1 x 0) / 4 and the other way round, and both names of terms."""
    scorers = [Weighted(Fixed("a", [1.0, 0.0]), 3.0), Weighted(Fixed("b", [0.0, 1.0]))]
    profile, known = Profile([], scorers, MaxScorePicker()), candidates((0, IDLE), (0, IDLE))
    ranking = profile.run(WORK, known, FIRST)
    assert ranking.scores == pytest.approx([0.75, 0.25])
    assert profile.terms(WORK, known)[0] == {"a": 1.0, "b": 0.0}
    assert list(ranking.order) == [0, 1]


def test_a_scorer_without_an_opinion_does_not_count() -> None:
    """Expect the mean of the others, and everybody alike where nobody has an opinion."""
    known = candidates((0, IDLE), (0, IDLE))
    mute = Weighted(Fixed("mute", []), 9.0)
    other = Weighted(Fixed("a", [1.0, 0.5]), 3.0)
    profile = Profile([], [mute, other], MaxScorePicker())
    assert list(profile.run(WORK, known, FIRST).scores) == [1.0, 0.5]
    assert list(Profile([], [mute], MaxScorePicker()).run(WORK, known, FIRST).scores) == [1.0, 1.0]

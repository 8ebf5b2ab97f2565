"""Known answers of every plugin's formula, as docs/SCHEDULING.md gives it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import ConfigError
from kvatlas.common.ids import EndpointName
from kvatlas.router.scheduling import Adapters, Candidate, Work
from kvatlas.router.scheduling.context_length import ranges_of
from kvatlas.router.scheduling.parameters import read
from kvatlas.router.scheduling.registry import OURS, kinds_of
from tests.fakes.scheduling import FIRST, LAST, Busy, candidate, candidates, loads

WORK = Work(1_000)
Parameters = Mapping[str, Any]


def made(kind: str, parameters: Parameters | None = None) -> Any:
    """Make a plugin as a configuration does."""
    return read(OURS[kind], parameters or {})


def scores(
    kind: str, known: Sequence[Candidate], parameters: Parameters | None = None, work: Work = WORK
) -> list[float]:
    """Score candidates with a plugin."""
    found: list[float] = made(kind, parameters).score(work, known)
    return found


def kept(
    kind: str, known: Sequence[Candidate], parameters: Parameters | None = None, work: Work = WORK
) -> list[int]:
    """Filter candidates with a plugin."""
    return list(made(kind, parameters).keep(work, known))


# --- scorers of load ----------------------------------------------------------------------------

LOAD_TABLE: list[tuple[str, Parameters, list[Busy], list[float]]] = [
    ("queue-scorer", {}, [Busy(waiting=n) for n in (0, 5, 10)], [1.0, 0.5, 0.0]),
    ("queue-scorer", {}, [Busy(waiting=7)] * 3, [1.0, 1.0, 1.0]),
    ("queue-scorer", {}, [], []),
    (
        "running-requests-size-scorer",
        {},
        [Busy(requests=4), Busy(others_running=2), Busy(requests=4, waiting=4)],
        [0.0, 0.5, 1.0],
    ),
    # Those of strangers that wait are no requests of ours that do.
    (
        "running-requests-size-scorer",
        {},
        [Busy(requests=4, waiting=3, others_waiting=3), Busy()],
        [0.0, 1.0],
    ),
    (
        "kv-cache-utilization-scorer",
        {},
        [Busy(kv_usage=n) for n in (0.0, 0.25, 1.0, 1.5)],
        [1.0, 0.75, 0.0, 0.0],
    ),
    (
        "load-aware-scorer",
        {},
        [Busy(waiting=n) for n in (0, 32, 64, 128, 999)],
        [0.5, 0.375, 0.25, 0.0, 0.0],
    ),
    ("load-aware-scorer", {"threshold": 4}, [Busy(waiting=n) for n in (1, 4)], [0.375, 0.0]),
    ("active-request-scorer", {}, [Busy(requests=n) for n in (0, 1, 4)], [1.0, 0.75, 0.0]),
    ("active-request-scorer", {}, [], []),
    (
        "active-request-scorer",
        {"idleThreshold": 1, "maxBusyScore": 0.5},
        [Busy(requests=n) for n in (0, 1, 2, 4)],
        [1.0, 1.0, 0.25, 0.0],
    ),
    (
        "token-load-scorer",
        {},
        [Busy(queued_tokens=n) for n in (0, 2_097_152, 4_194_304, 9_999_999)],
        [1.0, 0.5, 0.0, 0.0],
    ),
    ("token-load-scorer", {"queueThresholdTokens": 100}, [Busy(queued_tokens=25)], [0.75]),
    ("request-count-scorer", {}, [Busy(requests=1), Busy(others_running=3)], [1.0, 0.5]),
    ("even-scorer", {}, [Busy(requests=1), Busy()], [1.0, 1.0]),
]


@pytest.mark.parametrize(("kind", "parameters", "known", "expected"), LOAD_TABLE)
def test_scorers_of_load_follow_their_formulas(
    kind: str, parameters: Parameters, known: list[Busy], expected: list[float]
) -> None:
    """Expect the scores that the formula gives."""
    assert scores(kind, loads(*known), parameters) == pytest.approx(expected)


# --- scorers of affinity ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0.0, 0.5, 1.0, 1.0]),
        ({"prefixMatchInfoProducerName": "precise"}, [0.0, 0.5, 1.0, 1.0]),
        ({"matchLengthWeight": 1.0, "matchLengthScaleTokens": 1_000}, [0.0, 0.25, 1.0, 1.0]),
        ({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 1_000}, [0.0, 0.375, 1.0, 1.0]),
        ({"matchLengthWeight": 1.0}, [0.0, (500 / 8_192) ** 2, (1_000 / 8_192) ** 2, 0.0214577]),
    ],
)
def test_the_prefix_scorer_weighs_share_and_length(
    parameters: Parameters, expected: list[float]
) -> None:
    """Expect (1 - w) x share + w x min(1, tokens / scale)^2, whatever was estimated."""
    known = candidates(*((match, Busy()) for match in (0, 500, 1_000, 1_200)))
    assert scores("prefix-cache-scorer", known, parameters) == pytest.approx(expected, rel=1e-4)


def test_some_scorers_say_what_they_go_by() -> None:
    """Expect matched and queued tokens as terms, for /explain."""
    known = candidates((300, Busy(queued_tokens=7)))
    assert made("prefix-cache-scorer").terms(WORK, known) == [{"match_tokens": 300.0}]
    assert made("token-load-scorer").terms(WORK, known) == [{"queued_tokens": 7.0}]


def test_an_empty_prompt_matches_nothing() -> None:
    """Expect 0 and no division by zero."""
    assert scores("prefix-cache-scorer", candidates((0, Busy())), work=Work(0)) == [0.0]


def test_the_session_scorer_knows_one_endpoint() -> None:
    """Expect 1 for it and 0 for the others, and 0 for all without a conversation."""
    known = candidates((0, Busy()), (0, Busy()))
    at_home = replace(WORK, session=EndpointName("e1"))
    assert scores("session-affinity-scorer", known, work=at_home) == [0.0, 1.0]
    assert scores("session-affinity-scorer", known) == [0.0, 0.0]


ADAPTERS = [
    Adapters(running=frozenset({"mine", "a"}), most=2),
    Adapters(running=frozenset({"a"}), waiting=frozenset({"b"}), most=3),
    Adapters(running=frozenset({"a", "b"}), waiting=frozenset({"mine"}), most=2),
    Adapters(running=frozenset({"a", "b"}), most=2),
    Adapters(),
]


def test_the_adapter_scorer_has_four_steps() -> None:
    """Expect 1 where it runs, 0.8 where there is room, 0.6 where it waits, else 0."""
    known = loads(*(Busy(adapters=each) for each in ADAPTERS))
    work = replace(WORK, adapter="mine")
    assert scores("lora-affinity-scorer", known, work=work) == [1.0, 0.8, 0.6, 0.0, 0.0]
    assert scores("lora-affinity-scorer", known) == [1.0] * 5


def test_cold_requests_go_to_the_never_used_then_to_the_least_recently_used() -> None:
    """Expect 1 - rank / (n - 1), the order of use being the rank."""
    plugin, known = made("no-hit-lru-scorer"), candidates(*[(0, Busy())] * 3)
    assert plugin.score(WORK, known) == [1.0, 0.5, 0.0]
    plugin.note(WORK, known, 0)
    assert plugin.score(WORK, known) == [0.0, 1.0, 0.5]
    plugin.note(WORK, known, 2)
    plugin.note(WORK, known, 1)
    assert plugin.score(WORK, known) == [1.0, 0.0, 0.5]
    plugin.note(WORK, known, 0)
    assert plugin.score(WORK, known) == [0.0, 0.5, 1.0]


def test_warm_requests_are_nothing_to_the_lru() -> None:
    """Expect 0.5 for each, and no memory of where they went."""
    plugin = made("no-hit-lru-scorer")
    warm, cold = candidates((0, Busy()), (16, Busy())), candidates((0, Busy()), (0, Busy()))
    assert plugin.score(WORK, warm) == [0.5, 0.5]
    plugin.note(WORK, warm, 0)
    assert plugin.score(WORK, cold) == [1.0, 0.0]


def test_the_lru_is_bounded_and_one_endpoint_scores_one() -> None:
    """Expect the oldest to be forgotten, and 1 for a lone candidate."""
    plugin, known = made("no-hit-lru-scorer", {"lruSize": 1}), candidates(*[(0, Busy())] * 2)
    plugin.note(WORK, known, 0)
    plugin.note(WORK, known, 1)
    assert plugin.score(WORK, known) == [1.0, 0.0]
    assert plugin.score(WORK, known[:1]) == [1.0]
    assert plugin.score(WORK, []) == []


# --- context length -----------------------------------------------------------------------------

RANGE = "llm-d.ai/context-length-range"


def ranged(*texts: str | None, label: str = RANGE) -> list[Candidate]:
    """Make candidates whose labels name ranges."""
    return [
        candidate(f"e{i}", labels={} if text is None else {label: text})
        for i, text in enumerate(texts)
    ]


def test_ranges_that_hold_the_prompt_score_above_all_others() -> None:
    """Expect (0.3, 1] inside, the tighter the more; [0, 0.3) outside, the nearer the more."""
    known = ranged("1000-1000", "0-2048", "0-1000000000", "0-800", "0-200", "2000-3000", None, "x")
    point, tight, wide, near, far, above, none, odd = scores("context-length-aware", known)
    assert point == 1.0
    assert tight == pytest.approx(0.3 + 0.7 / (1 + 2_048 / 8_192))
    assert 1.0 > tight > wide > 0.3
    assert near == pytest.approx(0.3 * 0.8)
    assert far == pytest.approx(0.3 * 0.2)
    assert above == pytest.approx(0.3 * 0.5)
    assert none == odd == 0.5


def test_of_several_ranges_the_best_counts() -> None:
    """Expect the tighter of two that hold the prompt."""
    both, tight = scores("context-length-aware", ranged("0-9000, 900-1100", "900-1100"))
    assert both == tight


def test_ranges_filter_where_they_are_told_to() -> None:
    """Expect who has no range and who holds the prompt, for good."""
    known = ranged("0-999", "0-1000", None)
    assert kept("context-length-aware", known) == [0, 1, 2]
    filtering = {"enableFiltering": True}
    assert kept("context-length-aware", known, filtering) == [1, 2]
    assert made("context-length-aware", filtering).is_hard
    assert not made("context-length-aware").is_hard
    own = ranged("0-999", label="mine")
    assert kept("context-length-aware", own, {"label": "mine", **filtering}) == []


@pytest.mark.parametrize("text", ["", "-", "1", "1-", "-1", "2-1", "a-b", "1-2,", "1-2-3", "²-³"])
def test_what_is_no_range_is_none(text: str) -> None:
    """Expect no ranges at all where a part cannot be read."""
    assert ranges_of(text) == ()


# --- filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, [0, 1, 2]),
        ({"matchLabels": {"zone": "a"}}, [0]),
        ({"matchLabels": {"zone": "a", "gpu": "h100"}}, []),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}, [0, 1]),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, [1, 2]),
        ({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, [1]),
        ({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}, [0, 2]),
        (
            {
                "matchLabels": {"zone": "b"},
                "matchExpressions": [{"key": "gpu", "operator": "Exists"}],
            },
            [1],
        ),
    ],
)
def test_labels_select_as_in_kubernetes(selector: Parameters, expected: list[int]) -> None:
    """Expect all conditions to hold at once, and an empty selector to select everybody."""
    known = [
        candidate("e0", labels={"zone": "a"}),
        candidate("e1", labels={"zone": "b", "gpu": "h100"}),
        candidate("e2"),
    ]
    assert kept("label-selector-filter", known, selector) == expected
    assert made("label-selector-filter", selector).is_hard


@pytest.mark.parametrize(
    ("metric", "most", "within", "beyond"),
    [
        ("active-requests", 2, Busy(requests=2), Busy(requests=3)),
        ("running-requests", 2, Busy(requests=1, others_running=1), Busy(others_running=3)),
        ("waiting-queue", 0, Busy(), Busy(waiting=1)),
        ("kv-cache-utilization", 0.8, Busy(kv_usage=0.8), Busy(kv_usage=0.81)),
    ],
)
def test_the_utilization_filter_bounds_each_metric(
    metric: str, most: float, within: Busy, beyond: Busy
) -> None:
    """Expect what is at the bound to stay and what is above it to go."""
    bound = {"conditions": [{"metric": metric, "maxValue": most}]}
    assert kept("utilization-filter", loads(beyond, within), bound) == [1]
    assert kept("utilization-filter", loads(beyond), bound) == []
    assert made("utilization-filter", bound).is_hard
    gently = {**bound, "fallbackOnEmpty": True}
    assert kept("utilization-filter", loads(beyond), gently) == [0]
    assert kept("utilization-filter", loads(beyond, within), gently) == [1]
    assert not made("utilization-filter", gently).is_hard


def test_all_conditions_must_hold() -> None:
    """Expect who breaks either to go."""
    bounds = {
        "conditions": [
            {"metric": "waiting-queue", "maxValue": 0},
            {"metric": "active-requests", "maxValue": 1},
        ]
    }
    known = loads(Busy(waiting=1), Busy(requests=2), Busy(requests=1))
    assert kept("utilization-filter", known, bounds) == [2]


def test_the_session_filter_pins_unless_the_endpoint_is_gone() -> None:
    """Expect the one endpoint, or everybody."""
    known = candidates((0, Busy()), (0, Busy()))
    for session, expected in (("e1", [1]), ("e9", [0, 1]), (None, [0, 1])):
        name = None if session is None else EndpointName(session)
        work = replace(WORK, session=name)
        assert kept("session-affinity-filter", known, work=work) == expected


AFFINITY = "prefix-cache-affinity-filter"


def test_the_affinity_filter_keeps_who_holds_enough() -> None:
    """Expect 80 % to be enough by default, and everybody where nobody or all hold that."""
    assert kept(AFFINITY, candidates((799, Busy()), (800, Busy()), (999, Busy()))) == [1, 2]
    assert kept(AFFINITY, candidates((799, Busy()), (0, Busy()))) == [0, 1]
    assert kept(AFFINITY, candidates((900, Busy()), (900, Busy()))) == [0, 1]
    assert kept(AFFINITY, candidates((799, Busy()), (0, Busy())), {"affinityThreshold": 0.5}) == [0]


def test_the_affinity_filter_lets_go_of_a_queue_that_is_too_long() -> None:
    """Expect queued tokens / 15,928 per second to be bounded by 18 s more than elsewhere."""
    for tokens, expected in ((18 * 15_928, [0]), (18 * 15_928 + 16, [0, 1])):
        known = candidates((900, Busy(queued_tokens=tokens)), (0, Busy()))
        assert kept(AFFINITY, known) == expected
        assert kept(AFFINITY, known, {"maxTTFTPenaltyMs": 0}) == [0]
    # The best of each side is compared.
    busy = Busy(queued_tokens=10**9)
    assert kept(AFFINITY, candidates((900, busy), (900, Busy()), (0, Busy()))) == [0, 1]
    assert kept(AFFINITY, candidates((900, busy), (0, busy))) == [0]


def test_the_affinity_filter_can_go_by_our_own_estimate() -> None:
    """Expect base, queue and what is left to compute, at the endpoint's own rate."""
    own = {"ttftSource": "latencyPredictor", "maxTTFTPenaltyMs": 100}
    for queued, expected in ((1_000, [0]), (1_001, [0, 1])):
        # 100 ms left to compute and the queue, against 1,000 ms to compute.
        known = candidates((900, Busy(queued_tokens=queued)), (0, Busy()))
        assert kept(AFFINITY, known, own) == expected


def test_the_affinity_filter_explores_as_often_as_it_is_told() -> None:
    """Expect one in four turns to pass everybody, evenly."""
    known = candidates((900, Busy()), (0, Busy()))
    explored = [
        len(kept(AFFINITY, known, {"explorationProbability": 0.25}, replace(WORK, turn=turn))) == 2
        for turn in range(400)
    ]
    assert sum(explored) == pytest.approx(100, abs=2)
    assert all(any(explored[i : i + 8]) for i in range(0, 400, 8))


def test_the_unhealthy_are_left_out_while_others_are_healthy() -> None:
    """Expect positions of the healthy only, and of all when nobody is."""
    known = loads(Busy(healthy=False), Busy(), Busy(healthy=False))
    assert kept("healthy-filter", known) == [1]
    assert kept("healthy-filter", [known[0], known[2]]) == [0, 1]
    assert kept("healthy-filter", [known[1]]) == [0]


# --- pickers ------------------------------------------------------------------------------------

SCORES = [0.5, 1.0, 0.7, 1.0]


def order(kind: str, given_scores: Sequence[float], chance: Any, **parameters: Any) -> list[int]:
    """Order scores with a picker."""
    return list(made(kind, parameters).order(WORK, given_scores, chance))


def test_the_best_score_wins_and_ties_are_drawn() -> None:
    """Expect the drawn one of the best first, then the others from good to bad."""
    assert order("max-score-picker", SCORES, FIRST) == [1, 3, 2, 0]
    assert order("max-score-picker", SCORES, LAST) == [3, 1, 2, 0]
    assert order("max-score-picker", SCORES, LAST, maxNumOfEndpoints=3) == [3, 1, 2, 0]


def test_a_single_best_is_not_drawn() -> None:
    """Expect no draw where there is no tie."""

    class Refuses:
        """No chance."""

        def randrange(self, _stop: int) -> int:
            """Refuse."""
            raise AssertionError("drawn without a tie")

    assert order("max-score-picker", [0.1, 0.9], Refuses()) == [1, 0]


def test_the_random_picker_draws_and_orders_the_rest() -> None:
    """Expect as many drawn as asked for, without one twice, and the others by score."""
    assert order("random-picker", SCORES, FIRST) == [0, 1, 3, 2]
    assert order("random-picker", SCORES, LAST, maxNumOfEndpoints=2) == [3, 2, 1, 0]
    assert sorted(order("random-picker", SCORES, FIRST, maxNumOfEndpoints=99)) == [0, 1, 2, 3]


PICKERS = [kind for kind, cls in OURS.items() if "picker" in kinds_of(cls)]


@pytest.mark.parametrize("kind", PICKERS)
@given(
    given_scores=st.lists(st.floats(0.0, 1.0), max_size=12),
    seed=st.integers(0, 2**32),
    most=st.integers(1, 14),
)
def test_every_picker_gives_an_order_of_all(
    kind: str, given_scores: list[float], seed: int, most: int
) -> None:
    """Expect each position once, and behind those drawn the others from good to bad."""
    parameters = {} if kind == "round-robin-picker" else {"maxNumOfEndpoints": most}
    found = order(kind, given_scores, random.Random(seed), **parameters)
    assert sorted(found) == list(range(len(given_scores)))
    drawn = parameters.get("maxNumOfEndpoints", 1)
    rest = [given_scores[i] for i in found[drawn:]]
    assert rest == sorted(rest, reverse=True)


def shares(kind: str, given_scores: Sequence[float], **parameters: Any) -> list[float]:
    """Measure how often each position comes first."""
    chance, draws = random.Random(7), 20_000
    picker = made(kind, parameters)
    counts = Counter(picker.order(WORK, given_scores, chance)[0] for _ in range(draws))
    return [counts[i] / draws for i in range(len(given_scores))]


def test_draws_are_as_likely_as_they_should_be() -> None:
    """Expect 1/n, score / sum, and exp(score / T) / sum, within 1.5 %."""
    assert shares("random-picker", [0.1, 0.9]) == pytest.approx([0.5, 0.5], abs=0.015)
    weighted = shares("weighted-random-picker", [0.1, 0.3, 0.6])
    assert weighted == pytest.approx([0.1, 0.3, 0.6], abs=0.015)
    softmax = shares("softmax-picker", [1.0, 0.9], temperature=0.1)
    assert softmax == pytest.approx([2.71828 / 3.71828, 1 / 3.71828], abs=0.015)


def test_scores_of_zero_are_drawn_last_and_alike() -> None:
    """Expect none of them beside a score, and all of them where there is none."""
    assert shares("weighted-random-picker", [0.0, 1e-9]) == [0.0, 1.0]
    assert shares("weighted-random-picker", [0.0, 0.0]) == pytest.approx([0.5, 0.5], abs=0.015)


def test_a_temperature_near_zero_takes_the_best() -> None:
    """Expect no overflow and no chance for the others."""
    assert shares("softmax-picker", [1.0, 0.0, 0.999], temperature=1e-6) == [1.0, 0.0, 0.0]


# --- parameters ---------------------------------------------------------------------------------

WRONG: list[tuple[str, Parameters, str]] = [
    ("load-aware-scorer", {"threshold": 0}, "threshold: "),
    ("load-aware-scorer", {"threshold": "128"}, "threshold: "),
    ("load-aware-scorer", {"threshold": True}, "threshold: "),
    ("load-aware-scorer", {"treshold": 1}, "treshold: unknown"),
    ("active-request-scorer", {"idleThreshold": -1}, "idleThreshold: "),
    ("active-request-scorer", {"maxBusyScore": 1.1}, "maxBusyScore: "),
    ("active-request-scorer", {"max_busy_score": 1.0}, "max_busy_score: unknown"),
    ("token-load-scorer", {"queueThresholdTokens": 1.5}, "queueThresholdTokens: "),
    ("prefix-cache-scorer", {"matchLengthWeight": float("nan")}, "matchLengthWeight: "),
    ("prefix-cache-scorer", {"matchLengthScaleTokens": 0}, "matchLengthScaleTokens: "),
    ("cost-scorer", {"workPrice": float("inf")}, "workPrice: "),
    ("cost-scorer", {"workPrice": 101}, "workPrice: "),
    ("no-hit-lru-scorer", {"_used": {}}, "_used: unknown"),
    ("softmax-picker", {"temperature": 0}, "temperature: "),
    ("max-score-picker", {"maxNumOfEndpoints": 0}, "maxNumOfEndpoints: "),
    ("utilization-filter", {}, "conditions: "),
    ("utilization-filter", {"conditions": []}, "conditions: "),
    (
        "utilization-filter",
        {"conditions": [{"metric": "cpu", "maxValue": 1}]},
        "conditions.0.metric: ",
    ),
    ("label-selector-filter", {"matchLabels": {"a": 1}}, "matchLabels.a: "),
    (
        "label-selector-filter",
        {"matchExpressions": [{"key": "a", "operator": "In"}]},
        "matchExpressions.0: In needs values",
    ),
    (
        "label-selector-filter",
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
        "matchExpressions.0: Exists takes no values",
    ),
    ("prefix-cache-affinity-filter", {"ttftSource": "guess"}, "ttftSource: "),
    ("context-length-aware", {"label": ""}, "label: "),
    ("context-length-aware", {"enableFiltering": "yes"}, "enableFiltering: "),
]


@pytest.mark.parametrize(("kind", "parameters", "fault"), WRONG)
def test_a_wrong_parameter_is_named(kind: str, parameters: Parameters, fault: str) -> None:
    """Expect one line that begins with the parameter's name and holds no value."""
    with pytest.raises(ConfigError) as caught:
        made(kind, parameters)
    (line,) = caught.value.faults
    assert line.startswith(fault)


@pytest.mark.parametrize("kind", OURS)
def test_every_plugin_has_a_role_and_takes_no_strange_parameter(kind: str) -> None:
    """Expect each type to be a filter, a scorer or a picker, as its name says."""
    kinds = kinds_of(OURS[kind])
    assert kinds
    named = kind.rpartition("-")[2]
    assert named in kinds or kind in ("context-length-aware", "by-label")
    with pytest.raises(ConfigError, match="nonsense: unknown"):
        made(kind, {"nonsense": 1})

"""Known answers of the plugins for stages, for latency, and for tests of conformance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvatlas.router.scheduling import Candidate, Work
from kvatlas.router.scheduling.named import named_in
from kvatlas.router.scheduling.parameters import read
from kvatlas.router.scheduling.registry import OURS
from tests.fakes.scheduling import Busy, candidate, candidates

WORK = Work(1_000)
ROLES = (
    "encode", "prefill", "decode", "encode-prefill", "encode-decode", "prefill-decode",
    "encode-prefill-decode", "both", "else", None,
)  # fmt: skip


def kept(kind: str, known: list[Candidate], work: Work = WORK, **parameters: object) -> list[int]:
    """Filter with a plugin, which must be a hard one."""
    plugin: Any = read(OURS[kind], parameters)
    assert getattr(plugin, "is_hard", False)
    return list(plugin.keep(work, known))


def labelled(label: str, *values: str | None) -> list[Candidate]:
    """Make candidates with a label each, None for without it."""
    return [
        candidate(f"e{i}", labels={} if value is None else {label: value})
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("encode-filter", {"encode", "encode-prefill", "encode-decode", "encode-prefill-decode"}),
        (
            "prefill-filter",
            {"prefill", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both"},
        ),
        (
            "decode-filter",
            {"decode", "encode-decode", "prefill-decode", "encode-prefill-decode", "both", None},
        ),
    ],
)
def test_a_stage_is_served_by_the_roles_that_name_it(kind: str, expected: set[str | None]) -> None:
    """Expect those with the stage in their role; who has none decodes."""
    found = kept(kind, labelled("llm-d.ai/role", *ROLES))
    assert {ROLES[i] for i in found} == expected


def test_a_label_may_have_several_values_or_be_missing() -> None:
    """Expect the values that are given, and those without the label where they may be."""
    known = labelled("zone", "a", "b", "c", None)
    assert kept("by-label", known, label="zone", validValues=["a", "c"]) == [0, 2]
    assert kept("by-label", known, label="zone", validValues=["b"], allowsNoLabel=True) == [1, 3]
    assert kept("by-label", known, label="zone") == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, []),
        (" , ", []),
        ("10.0.0.1", [0, 1]),
        ("10.0.0.1:8001", [1]),
        ("10.0.0.9, 10.0.0.2:8000", [2]),
        ("::1", [3]),
        ("[::1]", [3]),
        ("[::1]:8000", [3]),
        ("[::1]:8001", []),
        ("10.0.0.2:8000#1", []),
    ],
)
def test_a_request_can_name_its_endpoints(header: str | None, expected: list[int]) -> None:
    """Expect those named by host or by host and port, all ranks of them, and nobody else."""
    names = ("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000#1", "[::1]:8000")
    work = replace(WORK, named=named_in(header))
    assert (
        kept("header-based-testing-filter", [candidate(name) for name in names], work) == expected
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, [(0.5 + 0.0 + 1.0) / 3, (1.0 + 0.75 + 0.25) / 3]),
        ({"compositeKVWeight": 0, "compositeQueueWeight": 0}, [1.0, 0.25]),
        ({"compositeKVWeight": 0, "compositePrefixWeight": 0}, [0.0, 0.75]),
        ({"compositeKVWeight": 2, "compositeQueueWeight": 1, "compositePrefixWeight": 1},
         [0.5, 0.75]),
        ({f"composite{each}Weight": 0 for each in ("KV", "Queue", "Prefix")}, [0.5, 1.0]),
    ],
)  # fmt: skip
def test_latency_is_scored_by_cache_queue_and_match(
    weights: dict[str, float], expected: list[float]
) -> None:
    """Expect the mean by weight of 1 - usage, (max - q) / max and matched / prompt."""
    known = candidates((1_000, Busy(kv_usage=0.5, waiting=8)), (250, Busy(waiting=2)))
    plugin: Any = read(OURS["latency-scorer"], weights)
    assert plugin.score(WORK, known) == pytest.approx(expected)


def test_without_a_queue_and_a_prompt_there_is_no_division_by_zero() -> None:
    """Expect an empty queue to score 1, an empty prompt 0, and no candidates nothing."""
    plugin: Any = read(OURS["latency-scorer"], {})
    assert plugin.score(Work(0), candidates((0, Busy()))) == pytest.approx([2 / 3])
    assert plugin.score(WORK, []) == []


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("active-request-scorer", {"inFlightLoadProducerName": "x", "requestTimeout": "2m"}),
        ("token-load-scorer", {"inFlightLoadProducerName": "x"}),
        ("prefix-cache-affinity-filter", {"latencyPredictionInfoProducerName": "x"}),
        (
            "latency-scorer",
            {"ttftWeight": 1, "tpotWeight": 0, "headroomSelectionStrategy": "most",
             "latencyPredictionInfoProducerName": "x", "prefixMatchInfoProducerName": "y"},
        ),
    ],
)  # fmt: skip
def test_names_of_producers_are_taken(kind: str, parameters: dict[str, object]) -> None:
    """Expect parameters that name what is here in one piece to be no fault."""
    assert read(OURS[kind], parameters) is not None

"""What is ruled for pools: priorities, and names of models."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from kvatlas.common.kube.rules import read_objective, read_rewrite
from kvatlas.common.pool_rules import NO_RULES, PoolRules
from tests.fakes.api_objects import Json, objective, rewrite, rule


def ruled(*objects: Json) -> PoolRules:
    """Read objects, and put them together."""
    by_kind: dict[str, list[bytes]] = {"InferenceObjective": [], "InferenceModelRewrite": []}
    for each in objects:
        by_kind[each["kind"]].append(orjson.dumps(each))
    return PoolRules.of(
        [read_objective(each) for each in by_kind["InferenceObjective"]],
        [read_rewrite(each) for each in by_kind["InferenceModelRewrite"]],
    )


def shares(rules: PoolRules, model: str) -> Counter[str | None]:
    """Draw a hundred times, evenly."""
    return Counter(rules.rewrite(model, draw / 100) for draw in range(100))


def test_nothing_is_ruled_where_there_are_no_objects() -> None:
    """Names stay, objectives are unknown."""
    assert NO_RULES.priority("gold") is None
    assert NO_RULES.rewrite("m", 0.5) is None
    assert ruled() == NO_RULES


def test_of_two_objectives_of_one_name_the_older_counts() -> None:
    """They are in two namespaces."""
    rules = ruled(
        objective("o", "q", 1, namespace="b", created="2026-01-02T00:00:00Z"),
        objective("o", "q", 2, namespace="a", created="2026-01-03T00:00:00Z"),
    )
    assert rules.priority("o") == 1


def test_exact_comes_before_every_and_older_before_younger() -> None:
    """Whatever order they are read in; within an object the first rule counts."""
    young = rewrite("a", "q", [rule(("m",), young=None)], created="2026-02-01T00:00:00Z")
    old = rewrite(
        "z",
        "q",
        [rule((), every=None), rule(("m", "n"), old=None), rule(("m",), late=None)],
        created="2026-01-01T00:00:00Z",
    )
    for rules in (ruled(young, old), ruled(old, young)):
        assert [rules.rewrite(name, 0.0) for name in ("m", "n", "x")] == ["old", "old", "every"]


def test_of_two_that_are_equally_old_the_name_decides() -> None:
    """So every replica comes to the same end."""
    first = rewrite("a", "q", [rule(("m",), first=None)])
    second = rewrite("b", "q", [rule(("m",), second=None)])
    assert ruled(second, first) == ruled(first, second)
    assert ruled(second, first).rewrite("m", 0.9) == "first"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"a": 100}, {"a": 100}),
        ({"a": None}, {"a": 100}),
        ({"a": 50, "b": 50}, {"a": 50, "b": 50}),
        ({"a": 7, "b": 3}, {"a": 70, "b": 30}),
        ({"a": None, "b": None}, {"a": 50, "b": 50}),
        ({"a": 0, "b": 0}, {"a": 50, "b": 50}),
        ({"a": 1, "b": None}, {"a": 100}),
        ({"a": 0, "b": 5}, {"b": 100}),
    ],
)
def test_weights_are_shares(targets: dict[str, int | None], expected: dict[str, int]) -> None:
    """Single, equal, different, omitted, zeros alone, mixed."""
    assert shares(ruled(rewrite("r", "q", [rule(("m",), **targets)])), "m") == expected


def test_a_target_that_is_there_twice_has_both_shares() -> None:
    """And a rule without targets is none."""
    made = rewrite("r", "q", [{"matches": [{"model": {"value": "x"}}]}, rule(("m",), a=1, b=2)])
    made["spec"]["rules"][1]["targets"].append({"modelRewrite": "a", "weight": 1})
    assert shares(ruled(made), "m") == {"a": 50, "b": 50}
    assert ruled(made).rewrite("x", 0.0) is None

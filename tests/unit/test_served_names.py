"""Which model a name means."""

from __future__ import annotations

from typing import Any

from kvatlas.common.ids import ModelName
from kvatlas.common.settings import ModelSettings
from kvatlas.router.served_names import Served, ServedNames

A, B = ModelName("a"), ModelName("b")


def names(**adapters: list[str]) -> ServedNames:
    """Make the names of models a and b."""
    return ServedNames(
        [ModelSettings(name=n, tokenizer="t", lora_adapters=adapters.get(n, [])) for n in "ab"]
    )


def found(known: ServedNames, name: str) -> tuple[Any, Any] | None:
    """Look a name up."""
    served = known.find(name)
    return (served.model, served.adapter) if served else None


def test_models_and_configured_adapters_are_known_from_the_start() -> None:
    """And nothing else is."""
    known = names(a=["x"])
    assert found(known, "a") == ("a", None)
    assert found(known, "x") == ("a", "x")
    assert found(known, "y") is None
    assert known.may_be_loaded(Served(A, "x"))
    assert not known.may_be_loaded(Served(A, "y"))


def test_learned_adapters_come_and_go() -> None:
    """What engines list no longer is not known any more; configured ones stay."""
    known = names(a=["x"])
    known.learn({A: {"y"}, B: {"z"}})
    assert [served.adapter for served in known.adapters()] == ["x", "y", "z"]
    assert found(known, "z") == ("b", "z")
    known.learn({A: set(), B: set()})
    assert [served.adapter for served in known.adapters()] == ["x"]


def test_a_models_name_is_the_model() -> None:
    """Whatever adapters are called."""
    known = names(a=["b"])
    known.learn({A: {"a", "b"}})
    assert found(known, "b") == ("b", None)
    assert found(known, "a") == ("a", None)
    assert known.adapters() == []


def test_an_adapter_of_two_models_stays_with_the_first() -> None:
    """Until that one has it no more."""
    known = names()
    known.learn({A: set(), B: {"x"}})
    known.learn({A: {"x"}, B: {"x"}})
    assert found(known, "x") == ("b", "x")
    known.learn({A: {"x"}, B: set()})
    assert found(known, "x") == ("a", "x")

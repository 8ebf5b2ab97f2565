"""What engines say is read for what it is, and nothing else is believed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.router.engine_answers import (
    ServedModels,
    read_models,
    read_token_ids,
    read_version,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.32.0", (0, 32, 0)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("0.33.0rc1.dev7+gabc", (0, 33)),
        ("1.2.3.4.5.6", (1, 2, 3, 4)),
        ("dev", None),
        ("", None),
        ("9" * 99, None),
        (7, None),
    ],
)
def test_a_version_is_its_leading_numbers(text: Any, version: tuple[int, ...] | None) -> None:
    """Whatever stands behind them."""
    assert read_version(orjson.dumps({"version": text})) == version


def cards(*entries: Any) -> bytes:
    """Write a list of models."""
    return orjson.dumps({"object": "list", "data": list(entries)})


def test_adapters_are_those_whose_parent_is_the_model() -> None:
    """Also where the engine lists its model under a second name, and the parent is that one."""
    content = cards(
        {"id": "m", "parent": None, "max_model_len": 1_024},
        {"id": "alias", "parent": None},
        {"id": "x", "parent": "m"},
        {"id": "y", "parent": "alias"},
        {"id": "z", "parent": "unknown"},
        {"id": 7},
        "nonsense",
    )
    assert read_models(content, "m") == ServedModels(
        serves=True, adapters=frozenset({"x", "y"}), max_model_len=1_024
    )


def test_another_model_is_not_ours_nor_are_its_adapters() -> None:
    """An engine that serves something else."""
    content = cards({"id": "other", "parent": None}, {"id": "x", "parent": "other"})
    assert read_models(content, "m") == ServedModels(serves=False)


def test_adapters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first by name are kept, the others counted; names that are too long are none."""
    monkeypatch.setattr(limits, "ADAPTERS_PER_ENDPOINT_MAX", 2)
    names = ["c", "a", "b", "x" * (limits.MODEL_NAME_CHARS_MAX + 1)]
    found = read_models(cards({"id": "m"}, *({"id": n, "parent": "m"} for n in names)), "m")
    assert found is not None
    assert (found.adapters, found.adapters_left_out) == (frozenset({"a", "b"}), 1)


@pytest.mark.parametrize("ids", [[], [0, 2**32 - 1]])
def test_token_ids_are_whole_numbers_of_32_bits(ids: list[int]) -> None:
    """As the index packs them."""
    assert read_token_ids(orjson.dumps({"tokens": ids})) == ids


@pytest.mark.parametrize("ids", [None, "1", [True], [1.0], [-1], [2**32], [[1]], ["1"]])
def test_nothing_else_is_token_ids(ids: Any) -> None:
    """Booleans are no numbers here."""
    assert read_token_ids(orjson.dumps({"tokens": ids})) is None


@given(JSON)
def test_no_json_is_too_odd(content: Any) -> None:
    """Every reader takes whatever comes."""
    raw = orjson.dumps(content)
    for wrapped in (raw, orjson.dumps({"version": content, "data": content, "tokens": content})):
        read_version(wrapped)
        read_models(wrapped, "m")
        read_token_ids(wrapped)


@given(st.binary(max_size=40))
def test_no_bytes_are_too_odd(raw: bytes) -> None:
    """Also what is no JSON."""
    read_version(raw)
    read_models(raw, "m")
    read_token_ids(raw)

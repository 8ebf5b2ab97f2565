"""Names of models: what they become on the way in, and that clients read their own again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import ConfigError
from kvatlas.common.pool_rules import NO_RULES, PoolRules
from kvatlas.common.settings import ModelSettings, RouterSettings, Settings
from kvatlas.common.weighted_names import WeightedNames
from kvatlas.router.body import replace
from kvatlas.router.renamed import Names, Renamed
from kvatlas.router.rewrites import Rewrites
from kvatlas.router.usage import WholeAnswer

A = ModelSettings(name="a", tokenizer="t", aliases=["one", "two"])
B = ModelSettings(name="b", tokenizer="t")
TRAP = '"model":"b" \\ {"model":"b"}\n'


def test_aliases_and_rewrites_are_names_and_nothing_else_is() -> None:
    """A name that nobody configured stays as it is."""
    rewrites = Rewrites([A, B], RouterSettings(rewrites={"b": {"a": 1}, "c": {"b": 2}}))
    assert [rewrites.target(n, "id") for n in ("one", "two", "a", "b", "c", "x")] == list("aaaabx")
    assert set(rewrites.names()) == {"one", "two", "b", "c"}


def test_targets_get_their_shares_and_an_id_always_the_same() -> None:
    """Over 4,000 ids the shares are the weights' within 3 points; again, they are equal."""
    rewrites = Rewrites([A, B], RouterSettings(rewrites={"c": {"a": 9, "b": 1}}))
    chosen = [rewrites.target("c", str(number)) for number in range(4_000)]
    assert Counter(chosen)["b"] == pytest.approx(400, abs=120)
    assert chosen == [rewrites.target("c", str(number)) for number in range(4_000)]


def test_rules_of_a_cluster_count_where_the_configuration_says_nothing() -> None:
    """As they are at the moment; an id meets the same target while they stay."""
    chat = WeightedNames.of({"a": 1, "b": 1})
    ruled = [PoolRules({}, {"chat": chat, "one": chat, "c": chat}, WeightedNames.of({"b": 1}))]
    configured = RouterSettings(rewrites={"c": {"b": 2}})
    rewrites = Rewrites([A, B], configured, lambda: ruled[-1])
    assert {rewrites.target("chat", str(number)) for number in range(20)} == {"a", "b"}
    assert [rewrites.target("chat", "7") for _ in range(9)] == [rewrites.target("chat", "7")] * 9
    assert [rewrites.target(name, "7") for name in ("one", "c", "x", "a")] == list("abbb")
    assert rewrites.names()["c"] == ("b",)
    assert set(rewrites.names()) == {"one", "two", "c", "chat"}
    assert [rewrites.label(name) for name in ("one", "chat", "x")] == ["one", "chat", "*"]
    ruled.append(NO_RULES)
    assert [rewrites.target(name, "7") for name in ("chat", "one", "x")] == ["chat", "a", "x"]


@pytest.mark.parametrize(
    ("models", "rewrites", "fault"),
    [
        ([{"aliases": ["b"]}, {}], {}, "models.0.aliases: 'b' is a model or an adapter itself"),
        ([{"aliases": ["x"]}, {"aliases": ["x"]}], {}, "models: alias 'x' is there twice"),
        ([{"aliases": ["x"]}, {}], {"x": {"b": 1}}, "router.rewrites.x: is an alias, too"),
        ([{}, {}], {"x": {"y": 1}}, "router.rewrites.x: 'y' is neither one of models"),
        ([{}, {}], {"x": {}}, "router.rewrites.x: "),
        ([{}, {}], {"x": {"a": 0}}, "router.rewrites.x.a: "),
    ],
)
def test_what_does_not_fit_is_a_fault_of_the_configuration(
    models: list[dict[str, Any]], rewrites: dict[str, Any], fault: str
) -> None:
    """With its path, and one fault for one mistake."""
    named = [{"name": n, "tokenizer": "t", **m} for n, m in zip("ab", models, strict=True)]
    with pytest.raises(ConfigError) as caught:
        Settings.model_validate({"models": named, "router": {"rewrites": rewrites}})
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(fault)


def test_a_value_is_replaced_and_not_a_byte_else() -> None:
    """Wherever the key stands and however it is spelled; deeper ones stay."""
    raw = b' {"x" : {"model":"a"} , "mod\\u0065l" :  "a" , "n":1e3,"model":[1]\n} '
    made = replace(raw, "model", b'"b"')
    assert made == b' {"x" : {"model":"a"} , "mod\\u0065l" :  "b" , "n":1e3,"model":"b"\n} '


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at some places."""
    places = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    return [raw[a:b] for a, b in pairwise(places)]


def fed(names: Names, pieces: list[bytes]) -> bytes:
    """Give what a client reads."""
    return b"".join(map(names.feed, pieces))


CUTS = st.lists(st.integers(0, 5_000), max_size=40)
OBJECTS = st.dictionaries(
    st.sampled_from(["model", "id", "message", 'mo"del', "choices", "\\"]),
    st.recursive(
        st.sampled_from(["b", TRAP, "", "\\", 1, None]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "message", "x"]), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=5,
)


def renamed(value: dict[str, Any], parent: str) -> dict[str, Any]:
    """Write the name anew where it comes first, the slow way."""
    for key, inner in value.items():
        if key == "model" and isinstance(inner, str):
            return {**value, "model": "new"}
        if key == parent and isinstance(inner, dict) and isinstance(inner.get("model"), str):
            return {**value, key: {**inner, "model": "new"}}
    return value


@given(OBJECTS, CUTS, st.sampled_from(["", "message"]))
def test_the_name_in_a_whole_answer_is_the_clients(
    value: dict[str, Any], cuts: list[int], parent: str
) -> None:
    """However the answer is cut; nothing else changes."""
    raw = json.dumps(value, ensure_ascii=False).encode()
    made = fed(Names("new", parent.encode(), is_stream=False), pieces_of(raw, cuts))
    assert made == json.dumps(renamed(value, parent), ensure_ascii=False).encode()


@given(st.lists(OBJECTS, max_size=5), CUTS, st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]))
def test_the_name_in_each_event_is_the_clients(
    values: list[dict[str, Any]], cuts: list[int], end: bytes
) -> None:
    """Events after comments with lone quotes and brackets, too."""

    def written(values: list[dict[str, Any]]) -> bytes:
        line = end[: len(end) // 2]
        head = b"event: x" + line
        events = [head + b"data: " + json.dumps(value).encode() + end for value in values]
        return (b': a "lone { one' + end).join(events) + b"data: [DONE]" + end

    names = Names("new", b"message", is_stream=True)
    made = fed(names, pieces_of(written(values), cuts))
    assert made == written([renamed(value, "message") for value in values])


def test_pieces_go_on_as_they_come() -> None:
    """Nothing but the old name is held back."""
    names = Names("new", is_stream=True)
    pieces = [b'data: {"mo', b'del":"o', b"l", b'd","text":"half', b' of it"}\n\ndata', b": {"]
    assert [names.feed(piece) for piece in pieces] == [
        *(b'data: {"mo', b'del":', b"", b'"new","text":"half', b' of it"}\n\ndata', b": {"),
    ]


def test_the_usage_is_read_all_the_same() -> None:
    """By the reader that would read it without a new name."""
    reader = Renamed(WholeAnswer(), Names("n", is_stream=False))
    assert reader.takes_out
    assert reader.feed(b'{"model":"m","usage":{"prompt_tokens":3}}').startswith(b'{"model":"n",')
    assert reader.end() == b""
    assert reader.usage is not None
    assert reader.usage.prompt_tokens == 3

"""Whatever a body looks like: cutting takes exactly the member, adding adds exactly one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvatlas.router.body import add, client_body, cut

KEYS = ["model", "kv_transfer_params", "vllm_xargs", "kv_cache_report_mode", "x", 'q"{}[],:\\', ""]
BLANKS = st.text(alphabet=" \t\n\r", max_size=2)
SCALARS = st.sampled_from(
    [
        *("1", "-0.5e+10", "null", "true", "[]", "{}"),
        *('"a"', '"kv_transfer_params"', '"\\"}{"', '"\\\\"', '"\\u006bv"', '"ü🚀"'),
        '[1 , {"kv_transfer_params":2}]',
    ]
)

unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Bodies are written by hand here, member by member, which takes its time on a busy machine."""

Pairs = list[tuple[str, str, Any]]
"""An object as (key, key as written, value), a value being such a list or JSON."""


def spelled(key: str) -> st.SearchStrategy[str]:
    """Write a key with any of its characters escaped."""
    plain = json.dumps(key, ensure_ascii=False)
    escaped = '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"'
    first = '"' + (f"\\u{ord(key[0]):04X}" + json.dumps(key[1:])[1:-1] if key else "") + '"'
    return st.sampled_from([plain, escaped, first])


MEMBERS = st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key), spelled(key)))
OBJECTS: st.SearchStrategy[Pairs] = st.recursive(
    st.lists(st.tuples(MEMBERS, SCALARS).map(lambda m: (*m[0], m[1])), max_size=5),
    lambda inner: st.lists(
        st.tuples(MEMBERS, SCALARS | inner).map(lambda m: (*m[0], m[1])), max_size=5
    ),
    max_leaves=8,
)


@st.composite
def written(draw: st.DrawFn, pairs: Pairs) -> tuple[str, Any]:
    """Write an object with white space, and give what is to be left for each member too."""
    parts = []
    for _, key, value in pairs:
        inner = value if isinstance(value, str) else draw(written(value))[0]
        blanks = [draw(BLANKS) for _ in range(4)]
        parts.append(f"{blanks[0]}{key}{blanks[1]}:{blanks[2]}{inner}{blanks[3]}")
    return "{" + ",".join(parts) + "}", parts


def pairs_of(text: str | bytes) -> Any:
    """Read JSON with every duplicate, in order."""
    return json.loads(text, object_pairs_hook=lambda pairs: ("object", pairs))


def without(value: Any, path: tuple[str, ...]) -> Any:
    """Drop every member that a path names from what `pairs_of` gives."""
    if not (isinstance(value, tuple) and value[0] == "object"):
        return value
    head, *rest = path
    kept = []
    for key, inner in value[1]:
        if key == head and not rest:
            continue
        kept.append((key, without(inner, tuple(rest)) if key == head else inner))
    return ("object", kept)


@unhurried
@given(OBJECTS.flatmap(written), BLANKS)
def test_cutting_takes_the_member_and_nothing_else(
    made: tuple[str, list[str]], around: str
) -> None:
    """All occurrences go, however they are spelled; every other member keeps its bytes."""
    text, parts = made
    raw = (around + text + around).encode()
    left = cut(raw, ("kv_transfer_params",))
    assert pairs_of(left) == without(pairs_of(raw), ("kv_transfer_params",))
    kept = [part for part in parts if _key(part) != "kv_transfer_params"]
    assert left.decode() == around + "{" + ",".join(kept) + "}" + around


@unhurried
@given(OBJECTS.flatmap(written))
def test_cutting_inside_of_a_member_leaves_it_there(made: tuple[str, list[str]]) -> None:
    """Only the inner member goes, in each occurrence of the outer one."""
    raw = made[0].encode()
    path = ("vllm_xargs", "kv_cache_report_mode")
    left = cut(raw, path)
    assert pairs_of(left) == without(pairs_of(raw), path)
    # What is cut out is nothing but one stretch per occurrence.
    rest = iter(raw)
    assert all(byte in rest for byte in left)


@unhurried
@given(OBJECTS.flatmap(written), BLANKS)
def test_adding_adds_one_member_at_the_end(made: tuple[str, list[str]], around: str) -> None:
    """Everything before it stays as it is."""
    raw = (around + made[0] + around).encode()
    more = add(raw, "new", b'{"a":[1]}')
    before = pairs_of(raw)[1]
    assert pairs_of(more) == ("object", [*before, ("new", ("object", [("a", [1])]))])
    assert more.startswith(raw.rstrip()[:-1])
    assert more.endswith(b'"new":{"a":[1]}}' + around.encode())


@unhurried
@given(OBJECTS.flatmap(written))
def test_a_client_cannot_hide_what_steers(made: tuple[str, list[str]]) -> None:
    """As the engine reads the body that is passed on, nothing is left of it."""
    raw = made[0].encode()
    body = client_body(raw, json.loads(raw))
    read = json.loads(body.raw)
    assert "kv_transfer_params" not in read
    xargs = read.get("vllm_xargs")
    assert not isinstance(xargs, dict) or "kv_cache_report_mode" not in xargs
    assert read == body.fields
    if not body.cut:
        assert body.raw is raw


def _key(part: str) -> str:
    key: str = json.JSONDecoder().raw_decode(part.strip(" \t\n\r"))[0]
    return key

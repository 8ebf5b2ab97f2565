"""Members cut out of bodies and added to them, byte for byte."""

from __future__ import annotations

import json

import pytest

from kvatlas.router.body import STEERING, add, client_body, cut, steering_in, without


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b'{"kv_transfer_params": {"a": [1]}}', b"{}"),
        (b'{"kv_transfer_params":null , "model":"m"}', b'{ "model":"m"}'),
        (b'{"model":"m" ,"kv_transfer_params":1 }\n', b'{"model":"m" }\n'),
        (b'{"a":1,"kv_transfer_params":1,"b":2}', b'{"a":1,"b":2}'),
        (b'{"kv_transfer_params":1,"a":1,"kv\\u005ftransfer_params":2}', b'{"a":1}'),
        (b'{"a":{"kv_transfer_params":1}}', b'{"a":{"kv_transfer_params":1}}'),
        (b'{"a":"kv_transfer_params"}', b'{"a":"kv_transfer_params"}'),
        (b'{"a":[{"kv_transfer_params":1},2]}', b'{"a":[{"kv_transfer_params":1},2]}'),
        (b'{"a":"\\\\","kv_transfer_params":"\\"}"}', b'{"a":"\\\\"}'),
    ],
)
def test_a_member_is_cut(raw: bytes, left: bytes) -> None:
    """At the beginning, in the middle, at the end, twice, escaped; not where it only looks so."""
    assert cut(raw, ("kv_transfer_params",)) == left


def test_an_inner_member_is_cut_wherever_its_parent_occurs() -> None:
    """The parent stays, empty if need be; a parent that is no object is left alone."""
    first = b'{"kv_cache_report_mode":"full"}'
    raw = b'{"vllm_xargs": %b,"vllm_xargs":{"a":1,"kv_cache_report_mode":0}}' % first
    assert cut(raw, STEERING["kv_cache_report_mode"]) == b'{"vllm_xargs": {},"vllm_xargs":{"a":1}}'
    for other in (b'{"vllm_xargs":["kv_cache_report_mode"]}', b'{"vllm_xargs":null}'):
        assert cut(other, STEERING["kv_cache_report_mode"]) == other


def test_nothing_to_cut_is_no_copy() -> None:
    """The body that arrived goes on, and it is said that nothing was cut."""
    raw = b'{"model": "m", "vllm_xargs": {"a": 1}, "vllm_xargs": {"b": 1}}'
    fields = json.loads(raw)
    body = client_body(raw, fields)
    assert body.raw is raw
    assert body.fields is fields
    assert body.cut == ()


def test_what_is_cut_is_named() -> None:
    """Both members go at once; the fields say what the bytes say, and the caller's stay."""
    raw = b'{"kv_transfer_params":{"x":1},"vllm_xargs":{"kv_cache_report_mode":"full","k":1}}'
    fields = json.loads(raw)
    body = client_body(raw, fields)
    assert body.cut == ("kv_transfer_params", "kv_cache_report_mode")
    assert body.raw == b'{"vllm_xargs":{"k":1}}'
    assert body.fields == json.loads(body.raw)
    assert fields == json.loads(raw)


def test_fields_without_a_member() -> None:
    """A path that leads nowhere changes nothing."""
    assert steering_in({"vllm_xargs": 3}) == ()
    assert without({"a": 1}, ("b",)) == {"a": 1}
    assert without({"a": 1}, ("a", "b")) == {"a": 1}
    assert without({"a": {"b": 1, "c": 2}}, ("a", "b")) == {"a": {"c": 2}}


@pytest.mark.parametrize(
    ("raw", "more"),
    [
        (b"{}", b'{"k":1}'),
        (b" { } \n", b' { "k":1} \n'),
        (b'{"a": "}"}', b'{"a": "}","k":1}'),
        (b'{"a": {} }', b'{"a": {} ,"k":1}'),
    ],
)
def test_a_member_is_added(raw: bytes, more: bytes) -> None:
    """Behind all others, with a comma where there are any."""
    assert add(raw, "k", b"1") == more


def test_what_is_no_object_is_no_body() -> None:
    """Whoever cuts has read it before; half an object is our own fault."""
    with pytest.raises(ValueError, match="not a JSON object"):
        cut(b'{"a": {}', ("a",))

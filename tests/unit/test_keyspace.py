"""Names of keys and texts of values: what is written is what is read, and names stay apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import BodyTooLarge, ConfigError, MalformedBatch, PromptUnavailable
from kvatlas.common.ids import (
    BlockHash,
    EndpointName,
    Epoch,
    ModelName,
    Pool,
    endpoint_name,
)
from kvatlas.common.keyspace import (
    Holder,
    LoadKeys,
    Shard,
    hex_digits,
    parse_holder_ids,
    shard_of,
    shards_of,
)


def test_keys_of_a_shard_share_its_hash_tag() -> None:
    """They live in one slot of a cluster."""
    shard = Shard(ModelName("Qwen/Qwen3-8B"), 2)
    name = EndpointName("10.0.0.1:8000#3")
    keys = [
        *(shard.holders, shard.dead, shard.endpoints, shard.endpoint(name), shard.bucket(0x3FA2)),
        shard.entry(BlockHash(0x3FA291BC00AA17DE))[0],
    ]
    assert all(key.startswith("kvatlas:{Qwen/Qwen3-8B/2}:") for key in keys)
    assert shard.entry(BlockHash(0x3FA291BC00AA17DE)) == (shard.bucket(0x3FA2), "91bc00aa17de")
    assert shard.entry(BlockHash(1)) == (shard.bucket(0), "000000000001")


def test_blocks_are_named_many_at_once() -> None:
    """As they are one by one, in their order."""
    shard = Shard(ModelName("m"), 0)
    blocks = [BlockHash(0x3FA291BC00AA17DE), BlockHash(1), BlockHash(2**64 - 1)]
    digits = hex_digits(blocks)
    assert digits == "3fa291bc00aa17de0000000000000001ffffffffffffffff"
    for windowed in (False, True):
        keys = [shard.entry(block, windowed=windowed)[0] for block in blocks]
        assert shard.buckets_of(digits, windowed=windowed) == keys


def test_keys_of_shared_load_have_a_slot_of_their_own() -> None:
    """They share a hash tag that no shard has."""
    keys = LoadKeys(ModelName("Qwen/Qwen3-8B"))
    assert keys.gauges == "kvatlas:{Qwen/Qwen3-8B/load}:gauges"
    assert keys.flights == "kvatlas:{Qwen/Qwen3-8B/load}:flights"
    assert keys.base != Shard(ModelName("Qwen/Qwen3-8B/load"), 0).base
    assert LoadKeys(ModelName("a{b}")).base.count("{") == 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_models_never_share_keys(one: str, two: str) -> None:
    """Braces, blanks and colons in names are encoded."""
    bases = {Shard(ModelName(name), 0).base for name in (one, two)}
    assert len(bases) == len({one, two})
    for base in bases:
        assert base.count("{") == base.count("}") == 1
        assert " " not in base


def test_endpoints_are_spread_over_shards() -> None:
    """The same endpoint always goes to the same one."""
    model = ModelName("m")
    names = [EndpointName(f"10.0.0.{i}:8000") for i in range(100)]
    chosen = [shard_of(model, name, 4) for name in names]
    assert set(chosen) == set(shards_of(model, 4))
    assert chosen == [shard_of(model, name, 4) for name in names]
    assert {shard_of(model, name, 1) for name in names} == {Shard(model, 0)}


@given(
    st.builds(Pool, st.text(min_size=1, max_size=20), st.integers(0, 99), is_remote=st.booleans()),
    st.text(),
    st.one_of(st.none(), st.integers(0, 2**32)),
    st.integers(0, 2**16),
)
def test_holders_read_as_they_were_written(
    pool: Pool, kind: str, window: int | None, size: int
) -> None:
    """Whatever an engine calls its media and kinds."""
    holder = Holder(EndpointName("[::1]:8000#1"), Epoch(3), pool, kind, window, size)
    assert Holder.from_text(holder.to_text()) == holder


def test_windows_have_buckets_of_their_own() -> None:
    """The same block stands elsewhere for a group that keeps a window."""
    shard, block = Shard(ModelName("m"), 0), BlockHash(0x3FA291BC00AA17DE)
    assert shard.entry(block, windowed=True) == ("kvatlas:{m/0}:w:3fa2", "91bc00aa17de")
    assert shard.bucket(0x3FA2, windowed=True) == "kvatlas:{m/0}:w:3fa2"
    assert shard.doubts == "kvatlas:{m/0}:doubts"


@pytest.mark.parametrize("text", ["", "spam", "endpoint=a epoch=1", "endpoint=a epoch=x medium=g"])
def test_foreign_holders_are_refused(text: str) -> None:
    """What another writer left is no holder."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for people
        Holder.from_text(text)


def test_holder_ids() -> None:
    """A list of numbers with blanks, and nothing else."""
    assert parse_holder_ids(b"3 17 204") == (3, 17, 204)
    with pytest.raises(ValueError, match="spam"):
        parse_holder_ids(b"3 spam")


def test_names_of_ranks_and_pools() -> None:
    """Rank 0 is the address alone."""
    assert endpoint_name("h:1") == "h:1"
    assert endpoint_name("h:1", 2) == "h:1#2"
    assert str(Pool("gpu", 0)) == "gpu/0"
    assert str(Pool("cpu", 2, is_remote=True)) == "cpu@remote/2"
    assert str(Pool("cpu@remote", 2)) != "cpu@remote/2"


def test_errors_carry_their_reason() -> None:
    """Reasons are labels, messages are for people, statuses for clients."""
    assert str(ConfigError(["a: b", "c: d"])) == "a: b\nc: d"
    assert PromptUnavailable("too_long").reason == MalformedBatch("too_long").reason == "too_long"
    error = BodyTooLarge("too large", "messages")
    assert (error.status, error.code, error.param) == (413, "request_too_large", "messages")

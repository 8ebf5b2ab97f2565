"""The chain: known answers, and what must and must not make two blocks the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.block_hash import ExtraKey, chain, pack_extras, root_hash
from kvatlas.common.ids import BlockHash, ModelName

ROOT = root_hash(ModelName("m"), 4)
EXTRA = st.one_of(st.text(), st.binary(), st.tuples(st.text(), st.integers(-(2**62), 2**62)))


def test_known_answers() -> None:
    """Hashes are part of the schema: an index outlives the processes that wrote it."""
    assert root_hash(ModelName("m"), 4) == KNOWN_ROOT
    assert root_hash(ModelName("m"), 4, "ad") == KNOWN_LORA_ROOT
    assert chain(ROOT, range(8), 4) == KNOWN_CHAIN
    assert chain(ROOT, range(8), 4, [("salt",)]) == KNOWN_SALTED


def test_only_full_blocks_are_hashed() -> None:
    """What is over after the last full block is left out."""
    assert chain(ROOT, range(11), 4) == chain(ROOT, range(8), 4)
    assert chain(ROOT, range(3), 4) == []
    assert chain(ROOT, [], 4, [("salt",)]) == []


def test_a_chain_goes_on_from_any_block() -> None:
    """Hashing in parts gives the same as hashing at once."""
    first, *_ = whole = chain(ROOT, range(16), 4)
    assert chain(first, range(4, 16), 4) == whole[1:]


def test_extras_change_their_block_and_all_after_it() -> None:
    """A salt in block 0 parts two chains for good; one in block 1 leaves block 0 shared."""
    plain = chain(ROOT, range(12), 4)
    salted = chain(ROOT, range(12), 4, [("salt",)])
    assert not set(plain) & set(salted)
    late = chain(ROOT, range(12), 4, [(), ("salt",)])
    assert late[0] == plain[0]
    assert not set(plain[1:]) & set(late[1:])


def test_model_block_size_and_adapter_part_chains() -> None:
    """Nothing is shared between them."""
    roots = {
        root_hash(ModelName(model), size, lora)
        for model in ("a", "b", "")
        for size in (1, 11, 16)
        for lora in (None, "a", "1")
    }
    assert len(roots) == 27


@given(st.lists(st.integers(0, 2**32 - 1), max_size=64), st.integers(1, 9), st.integers(0, 63))
def test_any_other_token_changes_the_rest(tokens: list[int], size: int, at: int) -> None:
    """From the block with the changed token on, no hash stays."""
    if at >= len(tokens):
        return
    other = [*tokens]
    other[at] ^= 1
    one, two = chain(ROOT, tokens, size), chain(ROOT, other, size)
    shared = at // size
    assert one[:shared] == two[:shared]
    assert not set(one[shared:]) & set(two[shared:])


@given(st.lists(EXTRA, max_size=4), st.lists(EXTRA, max_size=4))
def test_different_extras_pack_differently(one: list[ExtraKey], two: list[ExtraKey]) -> None:
    """No two lists of keys read the same, whatever is in them."""
    assert (pack_extras(one) == pack_extras(two)) == (one == two)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_token_ids_out_of_range_are_refused(token: int) -> None:
    """They are 32 bits on the wire."""
    with pytest.raises(OverflowError):
        chain(BlockHash(0), [token], 1)


KNOWN_ROOT = 594452883532118076
KNOWN_LORA_ROOT = 9885218583819870855
KNOWN_CHAIN = [15882585957613321752, 2523755348696371974]
KNOWN_SALTED = [2489010716623930307, 1067774034023516624]

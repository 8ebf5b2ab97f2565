"""What else than tokens decides whether blocks may be shared: all of it, told apart."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgpack
import pytest

from kvatlas.common.block_hash import ExtraKey, chain, root_hash
from kvatlas.common.ids import BlockHash, ModelName
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.decode import decode

MODEL = ModelName("m")
TOKENS = list(range(8))
DIGEST = bytes(range(32))

# name: (LoRA name, LoRA number, extra keys of the two blocks as vLLM puts them on the wire)
WIRE: dict[str, tuple[str | None, int | None, list[list[Any] | None] | None]] = {
    "plain": (None, None, None),
    "salt": (None, None, [["s1"], None]),
    "other salt": (None, None, [["s2"], None]),
    "salt like the adapter": (None, None, [["ad1"], None]),
    "adapter": ("ad1", 1, [["ad1"], ["ad1"]]),
    "adapter like the salt": ("s1", 1, [["s1"], ["s1"]]),
    "adapter and salt": ("ad1", 1, [["ad1", "s1"], ["ad1"]]),
    "adapter and salt of its name": ("ad1", 1, [["ad1", "ad1"], ["ad1"]]),
    "adapter known by number": (None, 1, None),
    "other adapter known by number": (None, 2, None),
    "image": (None, None, [[["mm", 0]], [["mm", -4]]]),
    "image further on": (None, None, [[["mm", 1]], [["mm", -3]]]),
    "image in the second block": (None, None, [None, [["mm", 0]]]),
    "image without offset in the second block": (None, None, [None, ["mm"]]),
    "image and salt": (None, None, [[["mm", 0], "s1"], [["mm", -4]]]),
    "adapter, image and salt": ("ad1", 1, [["ad1", ["mm", 0], "s1"], ["ad1", ["mm", -4]]]),
    "embeddings": (None, None, [[DIGEST], [DIGEST]]),
    "salt and embeddings": (None, None, [["s1", DIGEST], [DIGEST]]),
}


def indexed(name: str) -> list[BlockHash]:
    """Give the blocks that the indexer makes of an event."""
    lora, number, extras = WIRE[name]
    event = {
        "type": "BlockStored",
        "block_hashes": [1, 2],
        "parent_block_hash": None,
        "token_ids": TOKENS,
        "block_size": 4,
        "lora_id": number,
        "medium": "GPU",
        "lora_name": lora,
        "extra_keys": extras,
    }
    cache = EndpointCache(MODEL)
    cache.apply(decode(msgpack.packb([1.0, [event], 0])))
    return [block for _, block in cache.entries()]


@pytest.mark.parametrize(("one", "two"), list(combinations(WIRE, 2)))
def test_no_two_identities_share_their_last_block(one: str, two: str) -> None:
    """Whatever is different before it makes it another block."""
    assert indexed(one)[1] != indexed(two)[1]


@pytest.mark.parametrize(
    ("name", "lora", "extras"),
    [
        ("plain", None, []),
        ("salt", None, [("s1",)]),
        ("salt like the adapter", None, [("ad1",)]),
        ("adapter", "ad1", []),
        ("adapter and salt", "ad1", [("s1",)]),
        ("adapter and salt of its name", "ad1", [("ad1",)]),
        ("image and salt", None, [(("mm", 0), "s1"), (("mm", -4),)]),
    ],
)
def test_routers_hash_what_indexers_hash(
    name: str, lora: str | None, extras: list[tuple[ExtraKey, ...]]
) -> None:
    """The adapter in the root, the rest as extra keys of its block."""
    assert indexed(name) == chain(root_hash(MODEL, 4, lora), TOKENS, 4, extras)


def test_old_bare_identifiers_are_what_the_engine_takes_them_for() -> None:
    """Up to 0.17 a bare image identifier in the first block is no other key than a salt."""
    cache = EndpointCache(MODEL)
    wire = ["BlockStored", [1, 2], None, TOKENS, 4, None, "GPU", None, [["mm"], ["mm"]]]
    cache.apply(decode(msgpack.packb([1.0, [wire], 0])))
    first, second = (block for _, block in cache.entries())
    salted = chain(root_hash(MODEL, 4), TOKENS, 4, [("mm",)])
    assert first == salted[0]
    assert second != salted[1]

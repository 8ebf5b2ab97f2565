"""What happens to a block cache, as vLLM announces it, and how vLLM writes it. Pure.

Field order and the fields that are always there follow vLLM 0.24 and later ("map"); "array" is
what it wrote up to 0.20. Source: vllm/distributed/kv_events.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgpack

MEDIUM = "GPU"
SPEC_KIND = "full_attention"
GROUP = 0

EventFormat = Literal["map", "array"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive full blocks entered the cache.

    Attributes:
        hashes: engine hashes, one per block, 64 bits.
        parent: hash of the block before the first one, None at the start of a prompt.
        token_ids: tokens of all the blocks.
        extra_keys: per block, what else is part of its identity.
        lora_name: adapter that computed them, or None.
    """

    hashes: tuple[int, ...]
    parent: int | None
    token_ids: tuple[int, ...]
    block_size: int
    extra_keys: tuple[tuple[str, ...] | None, ...]
    lora_name: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """One copy of a block left the cache."""

    hash: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """The whole cache was forgotten."""


CacheEvent = Stored | Removed | Cleared


def encode_batch(
    timestamp: float, events: list[CacheEvent], event_format: EventFormat, rank: int = 0
) -> bytes:
    """Write the events of one scheduler step as the payload of one message.

    Args:
        timestamp: seconds since 1970.
        events: in the order in which they happened.
        event_format: "map" or "array".
        rank: data-parallel rank.
    """
    written = [_as_map(event) for event in events]
    if event_format == "array":
        return _pack([timestamp, [_as_array(event) for event in written], rank])
    return _pack([timestamp, written, rank])


def _as_map(event: CacheEvent) -> dict[str, Any]:
    if isinstance(event, Stored):
        return {
            "type": "BlockStored",
            "block_hashes": event.hashes,
            "parent_block_hash": event.parent,
            "token_ids": event.token_ids,
            "block_size": event.block_size,
            "lora_id": None if event.lora_name is None else 1,
            "medium": MEDIUM,
            "lora_name": event.lora_name,
            "extra_keys": event.extra_keys,
            "group_idx": GROUP,
            "kv_cache_spec_kind": SPEC_KIND,
        }
    if isinstance(event, Removed):
        return {
            "type": "BlockRemoved",
            "block_hashes": (event.hash,),
            "medium": MEDIUM,
            "group_idx": GROUP,
        }
    return {"type": "AllBlocksCleared"}


def _as_array(written: dict[str, Any]) -> list[Any]:
    """Give the fields in order, tag first; the kind of attention came with the map form."""
    return [value for name, value in written.items() if name != "kv_cache_spec_kind"]


def _pack(batch: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(batch)
    return packed

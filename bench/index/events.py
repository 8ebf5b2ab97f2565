"""Events as vLLM packs them, and the block hashes that stand behind them."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, ModelName

MODEL = ModelName("bench")
BLOCK_SIZE = 16
EVENT_BLOCKS = 32
_POOL_TOKENS = 1 << 20
_STAMP = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as an engine caches it: token ids, the engine's hashes, and ours."""

    token_ids: list[int]
    engine_hashes: list[int]

    @property
    def blocks(self) -> int:
        """Count its blocks."""
        return len(self.engine_hashes)

    def block_hashes(self) -> list[BlockHash]:
        """Give the hashes that the index knows the blocks by."""
        return chain(root_hash(MODEL, BLOCK_SIZE), self.token_ids, BLOCK_SIZE)

    def stores(self, end: int, start: int = 0, step: int = EVENT_BLOCKS) -> list[bytes]:
        """Write the events that store the blocks from `start` to `end`, `step` blocks in each."""
        return [self._store(at, min(at + step, end)) for at in range(start, end, step)]

    def _store(self, start: int, end: int) -> bytes:
        event = {
            "type": "BlockStored",
            "block_hashes": self.engine_hashes[start:end],
            "parent_block_hash": self.engine_hashes[start - 1] if start else None,
            "token_ids": self.token_ids[start * BLOCK_SIZE : end * BLOCK_SIZE],
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": None,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        return _pack([event])


def removed(engine_hashes: list[int]) -> bytes:
    """Write the event that removes one copy of each of these blocks."""
    event = {
        "type": "BlockRemoved",
        "block_hashes": engine_hashes,
        "medium": "GPU",
        "group_idx": 0,
    }
    return _pack([event])


def stamped(body: bytes, time_s: float) -> bytes:
    """Make events a batch: [time stamp, events, rank]."""
    return b"\x93\xcb" + _STAMP.pack(time_s) + body + b"\x00"


class PromptSource:
    """Draw prompts, always the same ones for a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = [self._random.randrange(151_000) for _ in range(_POOL_TOKENS)]

    def draw(self, blocks: int) -> Prompt:
        """Draw a prompt of so many blocks; no two begin with the same block."""
        tokens = blocks * BLOCK_SIZE
        start = self._random.randrange(_POOL_TOKENS - tokens)
        token_ids = self._pool[start : start + tokens]
        for place in range(4):
            token_ids[place] = self._random.randrange(151_000)
        return Prompt(token_ids, [self._random.getrandbits(64) for _ in range(blocks)])


def _pack(events: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(events)
    return packed

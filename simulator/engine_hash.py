"""The engine's own block hashes. Pure.

They differ from `common.block_hash` on purpose: what follows the events has to map one to the
other, as it must with a real engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256
from typing import NewType

BlockKey = NewType("BlockKey", bytes)
"""A chained sha256 of a full block."""

_ROOT = sha256(b"kvatlas-engine").digest()


def wire_hash(key: BlockKey) -> int:
    """Give the 64 bits of a key that events carry: the last eight bytes, as vLLM does."""
    return int.from_bytes(key[-8:], "big")


class ChainHasher:
    """Hash the full blocks of a sequence that grows at its end, each block once.

    The adapter is part of every block's identity, the salt of the first one's.
    """

    def __init__(self, block_size: int, salt: str | None, lora: str | None = None) -> None:
        self._block_size = block_size
        self._lora = b"" if lora is None else b"l" + lora.encode()
        self._salt = b"" if salt is None else b"s" + salt.encode("utf-8", "surrogatepass")
        self._keys: list[BlockKey] = []

    def keys(self, tokens: Sequence[int], count: int) -> list[BlockKey]:
        """Give the keys of the first blocks.

        Args:
            tokens: those of an earlier call are a prefix of them.
            count: blocks wanted, at most those that the tokens fill.
        """
        for index in range(len(self._keys), count):
            at = index * self._block_size
            parent = self._keys[-1] if self._keys else _ROOT
            block = array("I", tokens[at : at + self._block_size]).tobytes()
            extra = self._lora if index else self._lora + self._salt
            self._keys.append(BlockKey(sha256(parent + block + extra).digest()))
        return self._keys[:count]

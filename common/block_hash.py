"""Chained 64-bit hashes of token blocks: what the index is keyed by.

A block's hash covers its tokens and, through its parent, everything before them. The root of a
chain covers what else decides whether keys and values may be shared: model, block size and LoRA
adapter. A cache salt and other extra keys enter at the block that the engine attaches them to
(vLLM attaches the salt to block 0). Both the indexer, from the token ids in events, and the
router, from the prompt, compute them, so the engine's own hash algorithm and seed do not matter.

xxh3-64 with the parent as its seed. It is not keyed: whoever crafts a collision gains a wrong
prediction of a match, never somebody else's keys and values.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import iter_unpack
from typing import Final

from xxhash import xxh3_64_intdigest

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, ModelName

ExtraKey = str | bytes | tuple[str, int]
"""A salt or bare multimodal id, a digest of embeddings, or (multimodal id, offset in block)."""

ROOT_VERSION: Final = b"kvatlas-1"
TOKEN_BYTES: Final = 4

if array("I").itemsize != TOKEN_BYTES:  # pragma: no cover - no such platform is supported
    raise ImportError("array('I') is not 4 bytes wide on this platform")


@lru_cache(maxsize=limits.ROOTS_CACHED_MAX)
def root_hash(model: ModelName, block_size: int, lora: str | None = None) -> BlockHash:
    """Start a chain.

    Args:
        model: name of the base model.
        block_size: tokens per block, at least 1.
        lora: name of the LoRA adapter, or None.

    Returns:
        The parent of every first block of this model, block size and adapter.
    """
    parts = (ROOT_VERSION, model.encode(), str(block_size).encode(), (lora or "").encode())
    return BlockHash(xxh3_64_intdigest(b"".join(map(_with_length, parts))))


def chain(
    parent: BlockHash,
    token_ids: Sequence[int],
    block_size: int,
    extras: Sequence[Sequence[ExtraKey]] = (),
) -> list[BlockHash]:
    """Hash all full blocks of a run of tokens.

    Args:
        parent: hash of the block before the first one, or the root.
        token_ids: each in [0, 2**32); what is over after the last full block is left out.
        block_size: tokens per block, at least 1.
        extras: extra keys per block, from the first block on, without the LoRA name; missing ones
            are empty. Order as in the engine: what is multimodal, the salt, digests of embeddings.
            The place for multimodal prompts, too: (identifier, offset in block) in every block
            that an item reaches into.

    Returns:
        One hash per full block, in order.

    Raises:
        OverflowError: a token id is negative or over 32 bits. The caller's.

    Cost: 0.04 ms for an array of 10,000 tokens in blocks of 16, 0.11 ms for a list.
    """
    step = block_size * TOKEN_BYTES
    if not isinstance(token_ids, array) or token_ids.typecode != "I":
        token_ids = array("I", token_ids)
    packed = token_ids.tobytes()
    full = len(packed) - len(packed) % step
    hashes: list[BlockHash] = []
    digest: int = parent
    start = 0
    for extra in extras[: full // step]:
        block = packed[start : start + step]
        digest = xxh3_64_intdigest(block + pack_extras(extra) if extra else block, digest)
        hashes.append(BlockHash(digest))
        start += step
    intdigest = xxh3_64_intdigest
    # A NewType call per block would cost a third.
    hashes += [
        digest := intdigest(block, digest)  # type: ignore[misc]  # see above
        for (block,) in iter_unpack(f"{step}s", packed[start:full])
    ]
    return hashes


def pack_extras(extras: Iterable[ExtraKey]) -> bytes:
    """Write extra keys so that no two different lists of them read the same."""
    return b"".join(_pack_extra(extra) for extra in extras)


def _pack_extra(extra: ExtraKey) -> bytes:
    if isinstance(extra, str):
        return b"s" + _with_length(extra.encode("utf-8", "surrogatepass"))
    if isinstance(extra, bytes):
        return b"b" + _with_length(extra)
    identifier, offset = extra
    return (
        b"m"
        + _with_length(identifier.encode("utf-8", "surrogatepass"))
        + offset.to_bytes(8, "little", signed=True)
    )


def _with_length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part

"""What groups with a window or a state can serve of a prompt. Pure.

A hit of k blocks needs of such a group only some blocks before k: those of the sliding window, of
the chunk, or the last state. The hit is the longest one that every group can serve, found as vLLM
does: each group cuts the candidate down to what it can serve, until none cuts any more.
Source: vllm/v1/core/single_type_kv_cache_manager.py (find_longest_cache_hit) and
HybridKVCacheCoordinator; the block that speculative decoding (EAGLE) drops is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.common.kv_groups import CHUNK_KINDS, SLIDING_KINDS, STATE_KINDS

Span = tuple[int, int]
"""Blocks [first, end) that a group holds, counted from 0."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a hit needs of a group.

    Attributes:
        blocks: contiguous blocks right before the end of the hit, or all if there are fewer;
            None for all in any case.
        chunk_tokens: instead, the blocks of the chunk that the hit ends in.
        block_size: tokens per block, for chunks.
    """

    blocks: int | None = None
    chunk_tokens: int | None = None
    block_size: int = 1

    def first(self, end: int) -> int:
        """Give the first block of the chunk that a hit of `end` blocks ends in."""
        assert self.chunk_tokens is not None  # noqa: S101 - narrows the type
        tokens = end * self.block_size
        return tokens // self.chunk_tokens * self.chunk_tokens // self.block_size


def need_of(kind: str, window: int | None, block_size: int) -> Need:
    """Say what a hit needs of a group; where the window is not told, everything.

    Args:
        kind: of the group, one of WINDOWED_KINDS.
        window: tokens of its window or chunk.
        block_size: tokens per block; 0 when not known.
    """
    if kind in STATE_KINDS:
        return Need(blocks=1)
    if window is None or window < 1 or block_size < 1:
        return Need()
    if kind in SLIDING_KINDS:
        # The token to compute attends to itself, too; and an engine looks at one block at least.
        return Need(blocks=max(1, -(-(window - 1) // block_size)))
    if kind in CHUNK_KINDS:
        return Need(chunk_tokens=window, block_size=block_size)
    return Need()


def longest_hit(most: int, low: int, groups: Sequence[tuple[Need, Sequence[Span]]]) -> int | None:
    """Find the longest hit that every group can serve.

    Args:
        most: blocks that the groups without windows can serve.
        low: first block that the spans tell of; what lies before it is not known.
        groups: per group what a hit needs and what there is from `low` on, ascending and apart.

    Returns:
        Blocks in [0, most], or None when it depends on blocks before `low`.
    """
    hit, agreed = most, 0
    while agreed < len(groups):
        agreed = 0
        for need, spans in groups:
            served = _cut(hit, low, need, spans)
            if not served:
                return served
            agreed = agreed + 1 if served == hit else 0
            hit = served
    return hit


def _cut(hit: int, low: int, need: Need, spans: Sequence[Span]) -> int | None:
    """Find the longest hit of at most `hit` blocks, above 0, that one group can serve."""
    if need.chunk_tokens is not None:
        return _cut_chunk(hit, low, need, spans)
    for start, stop in reversed(spans):
        end = min(hit, stop)
        if start >= end:
            continue
        if start == 0 or (need.blocks is not None and end - start >= need.blocks):
            return end
        if start <= low:
            return None
    return None if low else 0


def _cut_chunk(hit: int, low: int, need: Need, spans: Sequence[Span]) -> int | None:
    """Do the same for a chunk: what lies before it is not needed, so its start always serves."""
    first = need.first(hit)
    if first == hit:
        return hit
    if first < low:
        return None
    return next((min(hit, end) for start, end in spans if start <= first < end), first)

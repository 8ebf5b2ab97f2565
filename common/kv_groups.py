"""Kinds of KV-cache groups, tiers of media, and what they mean for a match. Pure.

A hybrid model keeps several groups of KV caches. Some cache every block of a prompt, others only
what their window or state needs. Names of kinds are vLLM's (`kv_cache_spec_kind`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from kvatlas.common.ids import Pool

Tier = Literal["gpu", "cpu", "disk", "remote"]

FULL_ATTENTION: Final = "full_attention"
FULL_KINDS: Final = frozenset({FULL_ATTENTION, "mla_attention", "sink_full_attention"})
"""Groups that cache every block: their blocks make a prefix."""
SLIDING_KINDS: Final = frozenset({"sliding_window", "sliding_window_mla"})
CHUNK_KINDS: Final = frozenset({"chunked_local_attention"})
STATE_KINDS: Final = frozenset({"mamba"})
WINDOWED_KINDS: Final = SLIDING_KINDS | CHUNK_KINDS | STATE_KINDS
"""Groups that cache a window or a state: a hit needs only some of their last blocks."""
UNKNOWN_KIND: Final = "unknown"

TIERS: Final[tuple[Tier, ...]] = ("gpu", "cpu", "disk", "remote")
_TIER_OF_MEDIUM: Final[Mapping[str, Tier]] = {
    "gpu": "gpu",
    "cpu": "cpu",
    "storage": "disk",
    "disk": "disk",
    "fs": "disk",
    "ssd": "disk",
    "nvme": "disk",
}
DEFAULT_TIER_WEIGHTS: Final[Mapping[Tier, float]] = {
    "gpu": 1.0,
    "cpu": 0.8,
    "disk": 0.5,
    "remote": 0.5,
}
"""What a cached block is worth beside one on the GPU, from llm-d's (gpu 1.0, cpu 0.8) on down."""


def tier_of(pool: Pool) -> Tier:
    """Rank where a pool's blocks live; what is not known counts as far away."""
    if pool.is_remote:
        return "remote"
    return _TIER_OF_MEDIUM.get(pool.medium.lower(), "remote")

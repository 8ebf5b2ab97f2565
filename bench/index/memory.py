"""What the index costs: in Redis with all of its keys, and in the indexer process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench.index.events import EVENT_BLOCKS, PromptSource
from bench.index.fleet import Fleet, running_fleet
from bench.index.machine import resident_bytes

ENGINES = 64
PROMPT_BLOCKS = 512


def spread(engines: int, blocks: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Let each block be on one engine, the same number on all."""
    source = PromptSource(seed)
    prompts = max(1, blocks // PROMPT_BLOCKS // engines)
    length = min(PROMPT_BLOCKS, max(1, blocks // engines))
    for _ in range(prompts):
        for engine in range(engines):
            for body in source.draw(length).stores(length):
                yield engine, body


def shared(engines: int, blocks: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Let every block be on every engine."""
    source = PromptSource(seed)
    for _ in range(max(1, blocks // PROMPT_BLOCKS)):
        for body in source.draw(PROMPT_BLOCKS).stores(PROMPT_BLOCKS, step=EVENT_BLOCKS):
            for engine in range(engines):
                yield engine, body


def pairs_in(fleet: Fleet) -> int:
    """Count (block, endpoint) pairs in Redis itself, by reading every bucket."""
    pairs = 0
    for key in fleet.client.scan_iter(match="kvatlas:*}:b:*", count=1_000):
        values: list[Any] = fleet.client.hvals(key)
        pairs += sum(value.count(b" ") + 1 for value in values)
    return pairs


def remembered_in(fleet: Fleet) -> int:
    """Count the bytes of what indexers must remember; the rest is what readers look up."""
    keys = fleet.client.scan_iter(match="kvatlas:*}:memory:*", count=1_000)
    return sum(int(fleet.client.memory_usage(key, samples=0) or 0) for key in keys)


def cost(engines: int, work: Iterator[tuple[int, bytes]]) -> dict[str, Any]:
    """Fill an empty index and see what it takes."""
    with running_fleet(engines) as fleet:
        before, resident = fleet.used_bytes(), resident_bytes(fleet.indexer.pid)
        begun = time.perf_counter()
        fleet.fill(work)
        took = time.perf_counter() - begun
        used, grown = fleet.used_bytes() - before, resident_bytes(fleet.indexer.pid) - resident
        pairs = pairs_in(fleet)
        others = sum(not _is_bucket(key) for key in fleet.client.scan_iter(count=1_000))
        return {
            "pairs": pairs,
            "redis_bytes_per_pair": used / pairs,
            "remembered_bytes_per_pair": remembered_in(fleet) / pairs,
            "indexer_bytes_per_pair": grown / pairs,
            "pairs_per_s": pairs / took,
            "keys_besides_buckets": others,
            "faults": fleet.faults(),
        }


def _is_bucket(key: bytes) -> bool:
    return b"}:b:" in key or b"}:w:" in key


def measure(pairs: list[int]) -> dict[str, Any]:
    """Measure blocks on one endpoint each, and blocks on all 64."""
    return {
        "spread": {count: cost(ENGINES, spread(ENGINES, count, seed=4)) for count in pairs},
        "shared": cost(ENGINES, shared(ENGINES, pairs[0] // ENGINES, seed=5)),
    }

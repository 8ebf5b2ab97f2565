"""How much of a load's prompts any cache could have held: the yardstick of the demo. Pure.

Caches are taken as unbounded and shared: a request can find what any request that finished
before its start put into any cache.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from kvatlas.common.block_hash import chain, root_hash
from kvatlas.common.ids import BlockHash, ModelName

_ROOT = root_hash(ModelName("best-share"), 1)


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was answered.

    Attributes:
        prompt: token ids of its prompt.
        generated: token ids of its answer.
        start_s, finish_s: when it was sent, and when its last byte came.
    """

    prompt: Sequence[int]
    generated: Sequence[int]
    start_s: float
    finish_s: float


def best_cached_tokens(served: Iterable[Served], block_size: int) -> int:
    """Count the prompt tokens that could have been cached at best.

    For each prompt: the tokens in full blocks of its longest prefix that a request finished
    before its start left in a cache. That is its prompt and its answer but for the last token,
    whose keys and values are never computed.
    """
    held: set[BlockHash] = set()
    running: list[tuple[float, int, Served]] = []
    total = 0
    for number, request in enumerate(sorted(served, key=lambda one: one.start_s)):
        while running and running[0][0] <= request.start_s:
            done = heapq.heappop(running)[2]
            held.update(chain(_ROOT, [*done.prompt, *done.generated[:-1]], block_size))
        total += block_size * _leading(chain(_ROOT, request.prompt, block_size), held)
        heapq.heappush(running, (request.finish_s, number, request))
    return total


def _leading(hashes: Sequence[BlockHash], held: set[BlockHash]) -> int:
    for count, block in enumerate(hashes):
        if block not in held:
            return count
    return len(hashes)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share of the values does not exceed.

    Args:
        values: at least one.
        share: in (0, 1].
    """
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]

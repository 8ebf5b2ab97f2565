"""The default scorer: the estimated cost of a candidate, in milliseconds. Pure.

    base_ms      what a request waits there beside its tokens; learned
    queue_ms     the wait for its turn: (queued tokens - those computed since) / rate
    others_ms    tokens of strangers that queue there / rate
    prefill_ms   uncached tokens / rate
    work_ms      work_price x trust x prefill_ms: what the fleet loses by computing them again
    decode_ms    running requests slow the prefill, and one more slows them
    cache_ms     a little when running requests fill the cache

Rates and bases are learned per endpoint from first bytes (`prefill_speed`). The price on work:
near saturation a fleet lives from work not done. It fades with `trust`: who does not know what the
others send where must not follow the warm cache as they do.

What comes from scraped gauges can be one scrape old: an engine that fell idle a moment ago still
looks busy. So strangers that run and `kv_usage` together never weigh as much as HINT_TOKENS tokens
of prefill, which is less than one block of 16: in a quiet fleet the longest prefix wins, always.
Queues of strangers count in full, but only once two scrapes have seen them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kvatlas.router.scheduling.interfaces import Candidate, Load, Work

OWN_DECODE_TOKENS: Final = 4.0
"""Prefill tokens that one request there weighs; exact and live, so not capped."""
OTHERS_DECODE_TOKENS_MAX: Final = 8.0
"""Most that the running requests of strangers weigh, however many."""
OTHERS_HALF: Final = 8
"""Requests of strangers that weigh half of that."""
KV_USAGE_FREE: Final = 0.9
"""Share of the cache up to which nothing is short."""
KV_USAGE_TOKENS_MAX: Final = 6.0
"""What a full cache weighs."""
HINT_TOKENS: Final = OTHERS_DECODE_TOKENS_MAX + KV_USAGE_TOKENS_MAX
"""Most that scraped gauges weigh together: below the smallest usual block, 16 tokens."""
WAITING_TOKENS: Final = 1_000
"""Uncached tokens that a queueing request of a stranger is taken to have."""


@dataclass(frozen=True, slots=True)
class CostScorer:
    """Score by estimated cost: least cost / own cost.

    Attributes:
        work_price: how much a millisecond of prefill costs beyond the request's own wait.
    """

    work_price: float = 4.0

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; the least cost scores 1."""
        costs = self._costs(work, candidates)
        least = min(costs, default=0.0)
        if least <= 0.0:
            return [1.0 if cost <= least else 0.0 for cost in costs]
        return [least / cost for cost in costs]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:
        """Give what each cost is made of, in milliseconds."""
        price = self.work_price * work.trust
        return [self._terms(work, price, each) for each in candidates]

    def _costs(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        now_s, tokens = work.now_s, work.prompt_tokens
        factor = 1.0 + self.work_price * work.trust
        costs = []
        for candidate in candidates:
            load = candidate.load
            uncached = max(0, tokens - candidate.predicted_tokens)
            weighed = uncached * factor + _side_tokens(load)
            costs.append(load.base_s + load.wait_s(now_s) + weighed * load.token_s)
        return costs

    def _terms(self, work: Work, price: float, candidate: Candidate) -> Mapping[str, float]:
        load = candidate.load
        token_ms = load.token_s * 1e3
        prefill_ms = max(0, work.prompt_tokens - candidate.predicted_tokens) * token_ms
        return {
            "base_ms": load.base_s * 1e3,
            "queue_ms": load.wait_s(work.now_s) * 1e3,
            "others_ms": load.others_waiting * WAITING_TOKENS * token_ms,
            "prefill_ms": prefill_ms,
            "work_ms": prefill_ms * price,
            "decode_ms": _decode_tokens(load) * token_ms,
            "cache_ms": _cache_tokens(load.kv_usage) * token_ms,
        }


def _side_tokens(load: Load) -> float:
    waiting = load.others_waiting * WAITING_TOKENS
    return waiting + _decode_tokens(load) + _cache_tokens(load.kv_usage)


def _decode_tokens(load: Load) -> float:
    others = load.others_running
    return load.requests * OWN_DECODE_TOKENS + OTHERS_DECODE_TOKENS_MAX * others / (
        others + OTHERS_HALF
    )


def _cache_tokens(usage: float) -> float:
    if usage <= KV_USAGE_FREE:
        return 0.0
    return KV_USAGE_TOKENS_MAX * (min(usage, 1.0) - KV_USAGE_FREE) / (1.0 - KV_USAGE_FREE)

"""Scorers: how good a candidate is, as a number in [0, 1].

The cost of a candidate is an estimate of what sending the request there costs, in milliseconds:

    prefill_ms  uncached tokens / rate                 the request's own wait for its prefill
    work_ms     work_price x prefill_ms                what the fleet loses by computing again
    queue_ms    (own pending tokens + others waiting x tokens of a request) / rate
    decode_ms   a little per running request           steps grow with the batch
    cache_ms    a little when running requests fill the cache

What comes from scraped gauges can be one scrape old: an engine that fell idle a moment ago still
looks busy. So `others_running` and `kv_usage` together never weigh as much as HINT_TOKENS tokens
of prefill, which is less than one block of 16: in a quiet fleet the longest prefix wins, always.
Queues of others count in full, but only once two scrapes have seen them. Source of the price on
work: near saturation a fleet lives from work not done; between 2 and 4 it costs nothing at low
load and halves the time to first token at high load (simulated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvatlas.router.scheduling.interfaces import Candidate, Load, Score, Work

OWN_DECODE_TOKENS: Final = 4.0
"""Prefill tokens that one of our own requests there weighs; exact and live, so not capped."""
OTHERS_DECODE_TOKENS_MAX: Final = 8.0
"""Most that the running requests of others weigh, however many."""
OTHERS_HALF: Final = 8
"""Requests of others that weigh half of that."""
KV_USAGE_FREE: Final = 0.9
"""Share of the cache up to which nothing is short."""
KV_USAGE_TOKENS_MAX: Final = 6.0
"""What a full cache weighs."""
HINT_TOKENS: Final = OTHERS_DECODE_TOKENS_MAX + KV_USAGE_TOKENS_MAX
"""Most that scraped gauges weigh together: below the smallest usual block, 16 tokens."""
WAITING_TOKENS: Final = 1_000
"""Uncached tokens that a queueing request of somebody else is taken to have."""


@dataclass(frozen=True, slots=True)
class CostScorer:
    """Score by estimated cost: least cost / own cost.

    Attributes:
        prefill_tokens_per_s: what an engine computes; above 0.
        work_price: how much a millisecond of prefill costs beyond the request's own wait.
    """

    prefill_tokens_per_s: float
    work_price: float

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:
        """Give one score per candidate; the least cost scores 1."""
        terms = [self._terms(work, candidate) for candidate in candidates]
        costs = [sum(each.values()) for each in terms]
        least = min(costs, default=0.0)
        return [
            Score(1.0 if cost <= least else least / cost, each)
            for cost, each in zip(costs, terms, strict=True)
        ]

    def _terms(self, work: Work, candidate: Candidate) -> dict[str, float]:
        token_ms = 1_000.0 / self.prefill_tokens_per_s
        load = candidate.load
        prefill_ms = max(0, work.prompt_tokens - candidate.match_tokens) * token_ms
        queue_tokens = load.pending_tokens + load.others_waiting * WAITING_TOKENS
        return {
            "prefill_ms": prefill_ms,
            "work_ms": prefill_ms * self.work_price,
            "queue_ms": queue_tokens * token_ms,
            "decode_ms": _decode_tokens(load) * token_ms,
            "cache_ms": _cache_tokens(load.kv_usage) * token_ms,
        }


def _decode_tokens(load: Load) -> float:
    others = load.others_running
    return load.requests * OWN_DECODE_TOKENS + OTHERS_DECODE_TOKENS_MAX * others / (
        others + OTHERS_HALF
    )


def _cache_tokens(usage: float) -> float:
    short = (min(usage, 1.0) - KV_USAGE_FREE) / (1.0 - KV_USAGE_FREE)
    return KV_USAGE_TOKENS_MAX * max(0.0, short)


@dataclass(frozen=True, slots=True)
class RequestScorer:
    """Score by requests there, own and others': (1 + fewest) / (1 + own). Ignores matches."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:  # noqa: ARG002 - interface
        """Give one score per candidate; the fewest requests score 1."""
        counts = [
            c.load.requests + c.load.others_running + c.load.others_waiting for c in candidates
        ]
        fewest = min(counts, default=0)
        return [Score((1 + fewest) / (1 + n), {"requests": float(n)}) for n in counts]


@dataclass(frozen=True, slots=True)
class EvenScorer:
    """Score everybody the same, so that the draw decides. Ignores matches and load."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:  # noqa: ARG002 - interface
        """Give 1 to each."""
        return [Score(1.0, {}) for _ in candidates]

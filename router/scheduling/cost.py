"""The default scorer: the estimated cost of a candidate, in milliseconds. Pure.

    base_ms      what a request waits there beside its tokens; learned
    queue_ms     the wait for its turn: (queued tokens - those computed since) / rate
    others_ms    tokens of strangers that queue there / rate
    prefill_ms   uncached tokens / rate
    work_ms      work_price x trust x prefill_ms: what the fleet loses by computing them again
    decode_ms    running requests slow the prefill, and one more slows them
    cache_ms     a little when running requests fill the cache
    session_ms   taken off where the conversation was before: next to nothing while it is known
                 who holds what; where it is not, what SESSION_SHARE of the prompt would cost

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
from typing import Annotated, Final

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Load, Work
from kvatlas.router.scheduling.parameters import Amount, takes_parameters

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
SESSION_TOKENS: Final = 1.0
"""What the endpoint of the conversation is ahead of others that hold as much: it settles ties."""
SESSION_SHARE: Final = 0.8
"""Of the prompt that it is taken to hold where no match is known: all but the latest turn."""
HINT_TOKENS: Final = OTHERS_DECODE_TOKENS_MAX + KV_USAGE_TOKENS_MAX + SESSION_TOKENS
"""Most that gauges and sessions weigh together: below the smallest usual block, 16 tokens."""
WAITING_TOKENS: Final = 1_000
"""Uncached tokens that a queueing request of a stranger is taken to have."""


@takes_parameters
@dataclass(frozen=True, slots=True)
class CostScorer:
    """Score by estimated cost: least cost / own cost.

    Attributes:
        work_price: how much a millisecond of prefill costs beyond the request's own wait.
    """

    work_price: Annotated[Amount, Field(le=100)] = 4.0

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
        """Sum the terms below, in seconds; written out, for it is run for every candidate."""
        now_s, tokens = work.now_s, work.prompt_tokens
        factor = 1.0 + self.work_price * work.trust
        costs = []
        for candidate in candidates:
            load = candidate.load
            uncached = tokens - candidate.predicted_tokens
            weighed = uncached * factor if uncached > 0 else 0.0
            cost = load.base_s
            if requests := load.requests:
                weighed += requests * OWN_DECODE_TOKENS
                cost += load.wait_s(now_s)
            if others := load.others_running:
                weighed += OTHERS_DECODE_TOKENS_MAX * others / (others + OTHERS_HALF)
            if waiting := load.others_waiting:
                weighed += waiting * WAITING_TOKENS
            if (usage := load.kv_usage) > KV_USAGE_FREE:
                weighed += _cache_tokens(usage)
            costs.append(cost + weighed * load.token_s)
        if work.session is not None:
            for i, candidate in enumerate(candidates):
                if candidate.endpoint == work.session:
                    costs[i] -= _session_tokens(work, factor, candidate) * candidate.load.token_s
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
            **_session_terms(work, 1.0 + price, candidate),
        }


def _decode_tokens(load: Load) -> float:
    others = load.others_running
    return load.requests * OWN_DECODE_TOKENS + OTHERS_DECODE_TOKENS_MAX * others / (
        others + OTHERS_HALF
    )


def _cache_tokens(usage: float) -> float:
    if usage <= KV_USAGE_FREE:
        return 0.0
    return KV_USAGE_TOKENS_MAX * (min(usage, 1.0) - KV_USAGE_FREE) / (1.0 - KV_USAGE_FREE)


def _session_tokens(work: Work, factor: float, candidate: Candidate) -> float:
    """Tell how much less the endpoint of the conversation costs; never more than all of it."""
    uncached = max(0, work.prompt_tokens - candidate.predicted_tokens) * factor
    if not work.is_matched:
        return uncached * SESSION_SHARE
    return min(uncached, SESSION_TOKENS)


def _session_terms(work: Work, factor: float, candidate: Candidate) -> Mapping[str, float]:
    if work.session is None or candidate.endpoint != work.session:
        return {}
    return {"session_ms": -_session_tokens(work, factor, candidate) * candidate.load.token_s * 1e3}

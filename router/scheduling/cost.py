"""The default scorer: the estimated cost of a candidate, in milliseconds. Pure.

    base_ms      what a request waits there beside its tokens; learned
    queue_ms     the wait for its turn: (queued tokens - those computed since) / rate
    others_ms    tokens of strangers that queue there / rate
    prefill_ms   uncached tokens / rate
    join_ms      the delay of those that wait there: first tokens come when a step is over, and
                 the tokens that join a step make it longer for all in it
    work_ms      price x tokens computed again / rate: what the fleet loses by them
    decode_ms    running requests slow the prefill, and one more slows them
    cache_ms     a little when running requests fill the cache
    session_ms   next to nothing, taken off where the conversation was before: it settles ties

Rates and bases are learned from first bytes (`prefill_speed`). Tokens computed again are those
that the best candidate holds and this one does not. Their price is what they keep from others:

    price = clamp(work_price x pressure, 0.25, 6) / endpoints that hold them

`pressure` is how many requests await their first byte per endpoint, on average of some seconds. A
second of work makes each of those that come while the queue lasts wait a second longer, and there
are so many of them (in a queue at utilization u, u / (1 - u)). So an idle fleet computes again what
helps this request, and a full one lives from work not done. What many hold is wanted by many: one
more copy will be used again, and is charged in parts, so that a hot prefix spreads.
Where it is not known who holds what, the endpoint that the conversation was on is taken to hold
most of the prompt.
The price does not fade with `trust`: a fleet whose routers stop to save work falls over. Who does
not know what the others send counts each flight of its own for all of them (`Board.go_blind`), so
that waits outweigh warm caches and routers do not herd.

What comes from scraped gauges can be one scrape old: an engine that fell idle a moment ago still
looks busy. So strangers that run and `kv_usage` together never weigh as much as HINT_TOKENS tokens
of prefill, which is less than one block of 16: in a quiet fleet the longest prefix wins, always.
Queues of strangers count in full, but only once two scrapes have seen them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Load, Work
from kvatlas.router.scheduling.parameters import Amount, Count, takes_parameters

OWN_DECODE_TOKENS: Final = 32.0
"""Prefill tokens that one request of ours there weighs; exact and live, so not capped. It slows all
others there by little, but for as long as it decodes: with 4 a hot prompt of 2,000 tokens keeps its
users on one engine until they get an answer in 13 s instead of 8 (simulated)."""
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
JOINED_PART: Final = 1.0 / 3.0
"""Of a step, that the last one of a queue holds of it, on average (simulated: 1/4 to 1/2)."""
HINT_TOKENS: Final = OTHERS_DECODE_TOKENS_MAX + KV_USAGE_TOKENS_MAX + SESSION_TOKENS
"""Most that gauges and sessions weigh together: below the smallest usual block, 16 tokens."""
WAITING_TOKENS: Final = 1_000
"""Uncached tokens that a queueing request of a stranger is taken to have."""


@takes_parameters
@dataclass(frozen=True, slots=True)
class CostScorer:
    """Score by estimated cost: least cost / own cost.

    Attributes:
        work_price: what work done again costs, in parts of the pressure.
        work_price_least: least that a millisecond of it costs, so that a burst on an idle fleet
            does not compute the same prefix everywhere.
        work_price_max: most that a millisecond of it costs, in milliseconds.
        step_tokens: that an engine computes in one step (max_num_batched_tokens).
    """

    work_price: Annotated[Amount, Field(le=100)] = 1.0
    work_price_least: Annotated[Amount, Field(le=100)] = 0.25
    work_price_max: Annotated[Amount, Field(le=100)] = 6.0
    step_tokens: Count = 8_192

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; the least cost scores 1."""
        costs = self._costs(work, candidates, _held(work, candidates))
        least = min(costs, default=0.0)
        if least <= 0.0:
            return [1.0 if cost <= least else 0.0 for cost in costs]
        return [least / cost for cost in costs]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:
        """Give what each cost is made of, in milliseconds."""
        held = _held(work, candidates)
        lost = _lost_tokens(held, self._price(work))
        return [
            _terms(work, each, tokens, lost[tokens])
            | {
                "join_ms": self._joined_tokens(each.load, work.prompt_tokens - tokens)
                * each.load.token_s
                * 1e3
            }
            for each, tokens in zip(candidates, held, strict=True)
        ]

    def _price(self, work: Work) -> float:
        price = max(self.work_price_least, self.work_price * work.pressure)
        return min(self.work_price_max, price)

    def _costs(
        self, work: Work, candidates: Sequence[Candidate], held: Sequence[int]
    ) -> list[float]:
        """Sum the terms below, in seconds; written out, for it is run for every candidate."""
        now_s, tokens = work.now_s, work.prompt_tokens
        lost = _lost_tokens(held, self._price(work))
        costs = []
        for candidate, has in zip(candidates, held, strict=True):
            load = candidate.load
            weighed = tokens - has + lost[has]
            cost = load.base_s
            if requests := load.requests:
                weighed += requests * OWN_DECODE_TOKENS
                cost += load.wait_s(now_s)
                if load.awaiting:
                    weighed += self._joined_tokens(load, tokens - has)
            if others := load.others_running:
                weighed += OTHERS_DECODE_TOKENS_MAX * others / (others + OTHERS_HALF)
            if waiting := load.others_waiting:
                weighed += waiting * WAITING_TOKENS
            if (usage := load.kv_usage) > KV_USAGE_FREE:
                weighed += _cache_tokens(usage)
            costs.append(cost + weighed * load.token_s)
        if work.session is not None:
            for i, candidate in enumerate(candidates):
                costs[i] -= _session_tokens(work, candidate, held[i]) * candidate.load.token_s
        return costs

    def _joined_tokens(self, load: Load, uncached: int) -> float:
        """Weigh the delay of those whose step a prompt joins: the last one of the queue."""
        queued = load.queued_tokens
        if not queued:
            return 0.0
        share = min(1.0, JOINED_PART * self.step_tokens / queued)
        return load.awaiting * share * min(uncached, self.step_tokens / 2.0)


def _held(work: Work, candidates: Sequence[Candidate]) -> list[int]:
    """Tell how many tokens of the prompt each candidate holds, or may be taken to hold."""
    tokens = work.prompt_tokens
    held = [each.predicted_tokens for each in candidates]
    if held and max(held) > tokens:
        held = [min(has, tokens) for has in held]
    if work.session is not None and not work.is_matched:
        for i, candidate in enumerate(candidates):
            if candidate.endpoint == work.session:
                held[i] = max(held[i], int(SESSION_SHARE * tokens))
    return held


def _lost_tokens(held: Sequence[int], price: float) -> dict[int, float]:
    """Weigh what is computed again, by how many tokens a candidate holds."""
    ranked = sorted(held)
    best = ranked[-1] if ranked else 0
    # Those count as holders of what is lost who hold at least half of it.
    return {
        has: price * (best - has) / (len(ranked) - bisect_left(ranked, (has + best + 1) // 2))
        for has in set(ranked)
    }


def _terms(work: Work, candidate: Candidate, has: int, lost: float) -> dict[str, float]:
    load = candidate.load
    token_ms = load.token_s * 1e3
    terms = {
        "base_ms": load.base_s * 1e3,
        "queue_ms": load.wait_s(work.now_s) * 1e3,
        "others_ms": load.others_waiting * WAITING_TOKENS * token_ms,
        "prefill_ms": (work.prompt_tokens - has) * token_ms,
        "work_ms": lost * token_ms,
        "decode_ms": _decode_tokens(load) * token_ms,
        "cache_ms": _cache_tokens(load.kv_usage) * token_ms,
    }
    if work.session is not None:
        terms["session_ms"] = -_session_tokens(work, candidate, has) * token_ms
    return terms


def _decode_tokens(load: Load) -> float:
    others = load.others_running
    return load.requests * OWN_DECODE_TOKENS + OTHERS_DECODE_TOKENS_MAX * others / (
        others + OTHERS_HALF
    )


def _cache_tokens(usage: float) -> float:
    if usage <= KV_USAGE_FREE:
        return 0.0
    return KV_USAGE_TOKENS_MAX * (min(usage, 1.0) - KV_USAGE_FREE) / (1.0 - KV_USAGE_FREE)


def _session_tokens(work: Work, candidate: Candidate, has: int) -> float:
    """Tell what the endpoint of the conversation is ahead of its equals."""
    if candidate.endpoint != work.session:
        return 0.0
    return min(work.prompt_tokens - has, SESSION_TOKENS)

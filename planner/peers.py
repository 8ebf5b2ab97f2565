"""How others choose, each in its essence, and the plain ways. Pure.

round-robin       each router takes turns
least-requests    fewest requests in flight, ties at random
consistent-hash   ring by the first blocks of the prompt, load bounded to 1.25 of the mean
approximate-tree  what this router has sent where; spills when it is over the mean by both
64 and half of it (SMG's cache_aware)
block-cost        prompt blocks to compute + blocks held there (Dynamo)
gauges            2 x queue + 2 x free cache + 3 x match on scraped metrics (llm-d's default)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar, Final

from kvatlas.planner.engine import Served
from kvatlas.planner.index import Holders
from kvatlas.planner.jobs import Job
from kvatlas.planner.policy import Choice, Sight
from kvatlas.router.scheduling import Chance

BOUND: Final = 1.25
"""Most requests that consistent hashing leaves on an endpoint, in parts of the mean."""
POINTS: Final = 64
"""Points of each endpoint on the ring."""
SPILL_ABS: Final = 64
SPILL_REL: Final = 1.5
TREE_MATCH_MIN: Final = 0.3
"""Share of a prompt from which on the approximate tree follows it."""


class _Counting:
    """Count what is in flight, by endpoint."""

    shares: ClassVar[bool] = True
    scrapes: ClassVar[bool] = False

    def __init__(self, endpoints: int, block_size: int, chance: Chance) -> None:
        self._size = block_size
        self._chance = chance
        self._requests = [0] * endpoints
        self._prefill_tokens = [0] * endpoints
        self._blocks = [0] * endpoints

    def launched(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Count a flight in."""
        at = served.endpoint
        self._requests[at] += 1
        self._prefill_tokens[at] += served.uncached_tokens
        self._blocks[at] += served.job.room_blocks

    def began(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Count its prompt out."""
        self._prefill_tokens[served.endpoint] -= served.uncached_tokens

    def ended(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Count it out."""
        self._requests[served.endpoint] -= 1
        self._blocks[served.endpoint] -= served.job.room_blocks

    def _to(self, job: Job, endpoint: int, sight: Sight) -> Choice:
        matched = min(sight.blocks.get(endpoint, 0), job.usable_blocks)
        return Choice(endpoint, job.prompt_tokens - matched * self._size)

    def _least(self, costs: Sequence[float]) -> int:
        least = min(costs)
        ties = [each for each, cost in enumerate(costs) if cost == least]
        return ties[self._chance.randrange(len(ties))] if len(ties) > 1 else ties[0]


class RoundRobin(_Counting):
    """Take turns."""

    shares = False
    _turn = -1

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give the next one."""
        if self._turn < 0:
            self._turn = self._chance.randrange(len(self._requests))
        self._turn = (self._turn + 1) % len(self._requests)
        return self._to(job, self._turn, sight)


class LeastRequests(_Counting):
    """Take who has the fewest requests in flight."""

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give one of those with the fewest."""
        return self._to(job, self._least(self._requests), sight)


class ConsistentHash(_Counting):
    """Take the endpoint on the ring behind the first blocks; the next one where it is full."""

    shares = False

    def __init__(self, endpoints: int, block_size: int, chance: Chance) -> None:
        super().__init__(endpoints, block_size, chance)
        points = [(mixed(e * POINTS + p + 1), e) for e in range(endpoints) for p in range(POINTS)]
        self._ring = sorted(points)

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Walk the ring."""
        key = mixed(-job.runs[0].number if job.runs else -job.number)
        full = BOUND * (sum(self._requests) + 1) / len(self._requests)
        at = bisect_right(self._ring, (key, 0))
        endpoint = 0
        for step in range(len(self._ring)):
            endpoint = self._ring[(at + step) % len(self._ring)][1]
            if self._requests[endpoint] + 1 <= max(1.0, full):
                break
        return self._to(job, endpoint, sight)


class ApproximateTree(_Counting):
    """Follow what this router has sent where; whether it is still cached is not known."""

    shares = False

    def __init__(self, endpoints: int, block_size: int, chance: Chance) -> None:
        super().__init__(endpoints, block_size, chance)
        self._sent = Holders()
        self._sizes = [0] * endpoints

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give the endpoint with the longest known prefix, unless it has too much to do."""
        endpoint = self._prefixed(job)
        mean = sum(self._requests) / len(self._requests)
        load = self._requests[endpoint]
        if load > mean + SPILL_ABS and load > mean * SPILL_REL:
            endpoint = self._least(self._requests)
        for run in job.runs:
            if endpoint not in self._sent.of(run):
                self._sent.put(endpoint, run, run.length)
                self._sizes[endpoint] += run.length
        return self._to(job, endpoint, sight)

    def _prefixed(self, job: Job) -> int:
        known = self._sent.match(job)
        best = max(known.values(), default=0)
        if best * self._size <= TREE_MATCH_MIN * job.prompt_tokens:
            return self._least(self._sizes)
        ties = [each for each, blocks in known.items() if blocks == best]
        return min(ties, key=lambda each: self._requests[each])


class BlockCost(_Counting):
    """Take the least blocks to compute and held there, with the exact index."""

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give the cheapest."""
        size = self._size
        costs = [
            tokens / size + blocks
            for tokens, blocks in zip(self._prefill_tokens, self._blocks, strict=True)
        ]
        for endpoint, blocks in sight.blocks.items():
            costs[endpoint] -= blocks
        return self._to(job, self._least(costs), sight)


class GaugeScores(_Counting):
    """Score scraped gauges and the match, with llm-d's default weights."""

    shares = False
    scrapes = True

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give one of the best."""
        queues = [each.waiting for each in sight.gauges]
        least, most = min(queues), max(queues)
        span = most - least
        costs = [2.0 * each.usage for each in sight.gauges]
        if span:
            costs = [
                cost + 2.0 * (queue - least) / span
                for cost, queue in zip(costs, queues, strict=True)
            ]
        for endpoint, blocks in sight.blocks.items():
            costs[endpoint] -= 3.0 * blocks / max(1, job.blocks)
        return self._to(job, self._least(costs), sight)


def mixed(number: int) -> int:
    """Spread numbers over 64 bits (splitmix64)."""
    mask = (1 << 64) - 1
    mixed = (number * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)

"""Traces of other traffic, made by the seed: the same chance, the same trace. Pure.

    documents    500 long documents of uneven popularity, a short question to each request
    agents       sessions whose history grows with every turn, over a few system prompts
    no-reuse     prompts that share nothing
    hot-prompt   one system prompt of 4,096 tokens before all requests
    bursts       groups of requests with the same cold prefix within milliseconds

At speed-up 1 each brings about 41,000 prompt tokens per second, as Mooncake's conversation trace
does, so that a speed-up means much the same for all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, count, islice, pairwise
from typing import Final, Protocol

from kvatlas.planner.trace import ID_TOKENS, Record

TOKENS_PER_S: Final = 41_000.0
"""Prompt tokens that arrive per second at speed-up 1."""


class Dice(Protocol):
    """Where chance comes from; `random.Random` fits."""

    def random(self) -> float:
        """Draw a number in [0, 1)."""

    def randint(self, a: int, b: int, /) -> int:
        """Draw a whole number in [a, b]."""

    def expovariate(self, lambd: float, /) -> float:
        """Draw from an exponential distribution."""

    def lognormvariate(self, mu: float, sigma: float, /) -> float:
        """Draw from a log-normal distribution."""


_Prompts = Iterator[tuple[float, int, tuple[int, ...]]]
"""For each request: seconds since the one before, prompt tokens, and ids."""


def made(name: str, requests: int, dice: Dice) -> list[Record]:
    """Make a trace.

    Args:
        name: one of MAKERS.
        requests: how many.
        dice: what it is drawn with.
    """
    records, now_s = [], 0.0
    for gap_s, tokens, ids in islice(MAKERS[name](dice), requests):
        now_s += gap_s
        output = max(1, min(2_000, round(dice.lognormvariate(5.4, 0.9))))
        records.append(Record(now_s * 1e3, tokens, output, ids))
    return records


def _with_tail(head: tuple[int, ...], tail: int, ids: Iterator[int]) -> tuple[int, tuple[int, ...]]:
    """Put so many tokens of its own behind the blocks of a head."""
    own = tuple(islice(ids, -(-tail // ID_TOKENS)))
    return len(head) * ID_TOKENS + tail, (*head, *own)


def _documents(dice: Dice) -> _Prompts:
    ids = count()
    documents = [
        tuple(islice(ids, max(4, min(120, round(dice.lognormvariate(3.3, 0.7))))))
        for _ in range(500)
    ]
    # The n-th most popular one is asked for in proportion to 1 / (n + 3).
    shares = list(accumulate(1.0 / (rank + 3.0) for rank in range(len(documents))))
    sizes = [shares[0], *(b - a for a, b in pairwise(shares))]
    mean = sum(len(d) * ID_TOKENS * s for d, s in zip(documents, sizes, strict=True)) / shares[-1]
    rate = TOKENS_PER_S / (mean + 160.0)
    while True:
        document = documents[_drawn(shares, dice)]
        tokens, chain = _with_tail(document, dice.randint(20, 300), ids)
        yield dice.expovariate(rate), tokens, chain


def _drawn(shares: list[float], dice: Dice) -> int:
    point = dice.random() * shares[-1]
    low, high = 0, len(shares) - 1
    while low < high:
        middle = (low + high) // 2
        if shares[middle] > point:
            high = middle
        else:
            low = middle + 1
    return low


def _agents(dice: Dice) -> _Prompts:
    ids = count()
    systems = [tuple(islice(ids, 8)) for _ in range(5)]
    turns: list[tuple[float, int, int, tuple[int, ...]]] = []
    born_s, before_s, session = 0.0, 0.0, 0
    while True:
        # A session has about 15 turns, of 21,000 prompt tokens on average.
        while not turns or turns[0][0] > born_s:
            system = systems[dice.randint(0, len(systems) - 1)]
            heapq.heappush(
                turns, (born_s, session, max(1, round(dice.expovariate(1 / 15))), system)
            )
            session += 1
            born_s += dice.expovariate(TOKENS_PER_S / 390_000.0)
        now_s, number, left, history = heapq.heappop(turns)
        tokens, chain = _with_tail(history, dice.randint(64, 480), ids)
        yield now_s - before_s, tokens, chain
        before_s = now_s
        if left > 1:
            # What the turn has added stays, in whole blocks.
            grown = (*history, *islice(ids, max(1, round(dice.lognormvariate(0.9, 0.8)))))
            gap_s = 3.0 + dice.expovariate(1 / 12.0)
            heapq.heappush(turns, (now_s + gap_s, number, left - 1, grown))


def _no_reuse(dice: Dice) -> _Prompts:
    ids = count()
    while True:
        tokens = max(32, min(60_000, round(dice.lognormvariate(8.2, 1.0))))
        yield dice.expovariate(TOKENS_PER_S / 5_900.0), *_with_tail((), tokens, ids)


def _hot_prompt(dice: Dice) -> _Prompts:
    ids = count()
    system = tuple(islice(ids, 8))
    while True:
        tail = max(16, min(8_000, round(dice.lognormvariate(6.5, 0.8))))
        yield dice.expovariate(TOKENS_PER_S / 5_000.0), *_with_tail(system, tail, ids)


def _bursts(dice: Dice) -> _Prompts:
    ids = count()
    while True:
        head = tuple(islice(ids, max(2, min(60, round(dice.lognormvariate(2.5, 0.7))))))
        size = dice.randint(4, 32)
        gap_s = dice.expovariate(TOKENS_PER_S / (18.0 * 8_000.0))
        for _ in range(size):
            yield gap_s, *_with_tail(head, dice.randint(32, 400), ids)
            gap_s = dice.expovariate(1 / 0.002)


MAKERS: Final[Mapping[str, Callable[[Dice], _Prompts]]] = {
    "documents": _documents,
    "agents": _agents,
    "no-reuse": _no_reuse,
    "hot-prompt": _hot_prompt,
    "bursts": _bursts,
}

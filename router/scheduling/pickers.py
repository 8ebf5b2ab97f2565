"""Pickers: who of the scored gets the request. Pure: chance is a parameter.

Each gives an order of all. Who draws, draws the first `max_num_of_endpoints` of it; behind them
come the others from the best score to the worst, for the case that those drawn do not answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from typing import Final

from kvatlas.router.scheduling.interfaces import Chance, Work
from kvatlas.router.scheduling.parameters import Count, Positive, takes_parameters

# ruff: noqa: ARG002 - each is given what the interface says

EXPONENT_MAX: Final = 600.0
"""Of e: a chance of 1e-260 is none, and 1e260 is still a number."""


@takes_parameters
@dataclass(frozen=True, slots=True)
class MaxScorePicker:
    """Take the best score, ties at random: by the prompt's own draw where it has one.

    Attributes:
        max_num_of_endpoints: any; the order goes from the best score to the worst in any case.
    """

    max_num_of_endpoints: Count = 1

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:
        """Give positions from the best score to the worst; a drawn one of the best is first."""
        order = _by_score(scores)
        if not order:
            return order
        best = scores[order[0]]
        ties = scores.count(best)
        if ties > 1:
            own = work.draw
            drawn = chance.randrange(ties) if own is None else own % ties
            order[0], order[drawn] = order[drawn], order[0]
        return order


@takes_parameters
@dataclass(frozen=True, slots=True)
class RoundRobinPicker:
    """Take turns, whatever the scores."""

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:
        """Give the position whose turn it is, then the others from the best score to the worst."""
        return _then_by_score([work.turn % len(scores)], scores) if scores else []


@takes_parameters
@dataclass(frozen=True, slots=True)
class RandomPicker:
    """Draw, whatever the scores.

    Attributes:
        max_num_of_endpoints: that are drawn.
    """

    max_num_of_endpoints: Count = 1

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:
        """Give those that were drawn, then the others from the best score to the worst."""
        left = list(range(len(scores)))
        drawn = []
        for _ in range(min(self.max_num_of_endpoints, len(left))):
            i = chance.randrange(len(left))
            left[i], left[-1] = left[-1], left[i]
            drawn.append(left.pop())
        return _then_by_score(drawn, scores)


@takes_parameters
@dataclass(frozen=True, slots=True)
class WeightedRandomPicker:
    """Draw with chances as the scores: the largest keys U^(1/score) win.

    Attributes:
        max_num_of_endpoints: that are drawn.
    """

    max_num_of_endpoints: Count = 1

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:
        """Give those that were drawn, then the others; where all score 0, all are alike."""
        # The logarithm of the key, which small scores do not push to 0; U is never 0 itself.
        logs = [math.log(1.0 - chance.random()) for _ in scores]
        keys = [
            (log / score if score > 0.0 else -math.inf, log)
            for log, score in zip(logs, scores, strict=True)
        ]
        drawn = nlargest(self.max_num_of_endpoints, range(len(keys)), key=keys.__getitem__)
        return _then_by_score(drawn, scores)


@takes_parameters
@dataclass(frozen=True, slots=True)
class SoftmaxPicker:
    """Draw with chances as exp(score / temperature).

    Attributes:
        temperature: near 0 the best score nearly always wins; the higher, the more even.
        max_num_of_endpoints: that are drawn.
    """

    temperature: Positive = 0.1
    max_num_of_endpoints: Count = 1

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:
        """Give those that were drawn, then the others from the best score to the worst."""
        best = max(scores, default=0.0)
        # Who waits the shortest of exponential times with these means wins with just these
        # chances. They are told from the best, and bounded, so that no exponent overflows.
        waits = [
            -math.log(1.0 - chance.random())
            * math.exp(min((best - score) / self.temperature, EXPONENT_MAX))
            for score in scores
        ]
        drawn = nsmallest(self.max_num_of_endpoints, range(len(waits)), key=waits.__getitem__)
        return _then_by_score(drawn, scores)


def _by_score(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


def _then_by_score(first: list[int], scores: Sequence[float]) -> list[int]:
    taken = set(first)
    return first + [i for i in _by_score(scores) if i not in taken]

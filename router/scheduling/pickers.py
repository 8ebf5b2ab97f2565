"""Pickers: who of the scored gets the request. Pure: chance is a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import Chance, Work


@dataclass(frozen=True, slots=True)
class MaxScorePicker:
    """Take the best score, ties at random."""

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:  # noqa: ARG002 - interface
        """Give positions from the best score to the worst; a drawn one of the best is first."""
        if not scores:
            return []
        best = max(scores)
        ties = [i for i, score in enumerate(scores) if score == best]
        first = ties[chance.randrange(len(ties))] if len(ties) > 1 else ties[0]
        return [first, *_rest(scores, first)]


@dataclass(frozen=True, slots=True)
class RoundRobinPicker:
    """Take turns, whatever the scores."""

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> list[int]:  # noqa: ARG002 - interface
        """Give the position whose turn it is, then the others from the best score to the worst."""
        if not scores:
            return []
        first = work.turn % len(scores)
        return [first, *_rest(scores, first)]


def _rest(scores: Sequence[float], first: int) -> list[int]:
    return sorted((i for i in range(len(scores)) if i != first), key=lambda i: -scores[i])

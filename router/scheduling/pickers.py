"""Pickers: who of the scored gets the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import Draw


@dataclass(frozen=True, slots=True)
class BestScorePicker:
    """Take the best score; the draw settles ties."""

    def order(self, scores: Sequence[float], draw: Draw) -> list[int]:
        """Give positions from the best score to the worst; a drawn one of the best is first."""
        if not scores:
            return []
        best = max(scores)
        ties = [i for i, score in enumerate(scores) if score == best]
        first = ties[draw(len(ties))] if len(ties) > 1 else ties[0]
        rest = sorted((i for i in range(len(scores)) if i != first), key=lambda i: -scores[i])
        return [first, *rest]

"""A profile: filters, then weighted scorers, then a picker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Draw,
    Filter,
    Picker,
    Score,
    Scorer,
    Work,
)

_FILTERED = Score(0.0, {})


@dataclass(frozen=True, slots=True)
class Weighted:
    """A scorer and how much its scores count; above 0."""

    scorer: Scorer
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """The outcome of a profile.

    Attributes:
        order: positions of all candidates: the chosen one, whom to try next, the filtered last.
        scores: one per candidate, in their own order; 0 for the filtered.
    """

    order: Sequence[int]
    scores: Sequence[Score]


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to choose, as data.

    Attributes:
        filters: run in order, each on what the one before left.
        scorers: their weighted mean is the score; terms of all are shown. At least one.
    """

    filters: Sequence[Filter]
    scorers: Sequence[Weighted]
    picker: Picker

    def run(self, work: Work, candidates: Sequence[Candidate], draw: Draw) -> Ranking:
        """Rank the candidates.

        Args:
            work: what the request asks for.
            candidates: whom to choose from, in any order.
            draw: settles ties.
        """
        kept: Sequence[int] = range(len(candidates))
        for each in self.filters:
            inner = each.keep(work, [candidates[i] for i in kept])
            kept = [kept[i] for i in inner]
        judged = self._score(work, [candidates[i] for i in kept])
        picked = self.picker.order([score.value for score in judged], draw)
        scores = [_FILTERED] * len(candidates)
        for i, score in zip(kept, judged, strict=True):
            scores[i] = score
        chosen = [kept[i] for i in picked]
        left_out = set(range(len(candidates))).difference(chosen)
        return Ranking([*chosen, *sorted(left_out)], scores)

    def _score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:
        if len(self.scorers) == 1:
            return self.scorers[0].scorer.score(work, candidates)
        total = sum(each.weight for each in self.scorers)
        columns = [(each.weight, each.scorer.score(work, candidates)) for each in self.scorers]
        return [
            Score(
                sum(weight * column[i].value for weight, column in columns) / total,
                {name: term for _, column in columns for name, term in column[i].terms.items()},
            )
            for i in range(len(candidates))
        ]

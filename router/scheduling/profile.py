"""A profile: filters, then weighted scorers, then a picker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Chance,
    Explains,
    Filter,
    Notes,
    Picker,
    Scorer,
    Work,
)


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
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to choose, as data.

    Attributes:
        filters: run in order, each on what the one before left.
        scorers: their weighted mean is the score. At least one.
    """

    filters: Sequence[Filter]
    scorers: Sequence[Weighted]
    picker: Picker

    def run(self, work: Work, candidates: Sequence[Candidate], chance: Chance) -> Ranking:
        """Rank the candidates."""
        kept: Sequence[int] = range(len(candidates))
        left = candidates
        for each in self.filters:
            inner = each.keep(work, left)
            kept = [kept[i] for i in inner]
            left = [candidates[i] for i in kept]
        judged = self._score(work, left)
        picked = self.picker.order(work, judged, chance)
        if len(kept) == len(candidates):
            return Ranking(picked, judged)
        scores = [0.0] * len(candidates)
        for i, score in zip(kept, judged, strict=True):
            scores[i] = score
        chosen = [kept[i] for i in picked]
        left_out = set(range(len(candidates))).difference(chosen)
        return Ranking([*chosen, *sorted(left_out)], scores)

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
        """Say what the scores of all candidates are made of, filtered or not."""
        terms: list[dict[str, float]] = [{} for _ in candidates]
        for each in self.scorers:
            if isinstance(each.scorer, Explains):
                for all_of_one, more in zip(
                    terms, each.scorer.terms(work, candidates), strict=True
                ):
                    all_of_one.update(more)
        return terms

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:
        """Tell the plugins that remember decisions of one that a request follows."""
        for plugin in (*self.filters, *(each.scorer for each in self.scorers)):
            if isinstance(plugin, Notes):
                plugin.note(work, candidates, chosen)

    def _score(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[float]:
        if len(self.scorers) == 1:
            return self.scorers[0].scorer.score(work, candidates)
        total = sum(each.weight for each in self.scorers)
        columns = [(each.weight, each.scorer.score(work, candidates)) for each in self.scorers]
        return [
            sum(weight * column[i] for weight, column in columns) / total
            for i in range(len(candidates))
        ]

"""A profile: filters, then weighted scorers, then a picker. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvatlas.common.errors import NoEndpoints
from kvatlas.common.records import record
from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Chance,
    Explains,
    Filter,
    Notes,
    Picker,
    Scorer,
    Work,
    is_hard,
)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A scorer and how much its scores count; above 0."""

    scorer: Scorer
    weight: float = 1.0


@record
class Ranking:
    """The outcome of a profile.

    Attributes:
        order: positions of the candidates: the chosen one, whom to try next, and last those that
            filters left out; those that a hard filter left out are not in it.
        scores: one per candidate, in their own order; 0 for the filtered.
    """

    order: Sequence[int]
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to choose, as data.

    Attributes:
        filters: the hard ones run before the others, each on what the one before left.
        scorers: the weighted mean of those that have an opinion is the score. At least one.
    """

    filters: Sequence[Filter]
    scorers: Sequence[Weighted]
    picker: Picker
    _noting: Sequence[Notes] = field(init=False, repr=False, compare=False)
    _filters: Sequence[Filter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Found once: to ask an object whether it fits a protocol takes longer than a decision.
        plugins = (*self.filters, *(each.scorer for each in self.scorers), self.picker)
        noting = [each for each in plugins if isinstance(each, Notes)]
        object.__setattr__(self, "_noting", noting)
        hard_first = sorted(self.filters, key=lambda each: not is_hard(each))
        object.__setattr__(self, "_filters", hard_first)

    def run(self, work: Work, candidates: Sequence[Candidate], chance: Chance) -> Ranking:
        """Rank the candidates.

        Raises:
            NoEndpoints: hard filters left nobody. The configuration's, or the load's.
        """
        kept, left_out = self._filter(work, candidates)
        if len(kept) == len(candidates):
            scores = self._score(work, candidates)
            return Ranking(self.picker.order(work, scores, chance), scores)
        left = [candidates[i] for i in kept]
        judged = self._score(work, left)
        picked = [kept[i] for i in self.picker.order(work, judged, chance)]
        scores = [0.0] * len(candidates)
        for i, score in zip(kept, judged, strict=True):
            scores[i] = score
        return Ranking([*picked, *left_out], scores)

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[dict[str, float]]:
        """Say what the scores of all candidates are made of, filtered or not."""
        terms: list[dict[str, float]] = [{} for _ in candidates]
        for each in self.scorers:
            if isinstance(each.scorer, Explains):
                told: Sequence[Mapping[str, float]] = each.scorer.terms(work, candidates)
                for all_of_one, more in zip(terms, told, strict=True):
                    all_of_one.update(more)
        return terms

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:
        """Tell the plugins that remember decisions of one that a request follows."""
        for plugin in self._noting:
            plugin.note(work, candidates, chosen)

    def _filter(
        self, work: Work, candidates: Sequence[Candidate]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Give the positions of those that stay, and of those to be asked last."""
        kept: Sequence[int] = range(len(candidates))
        last: list[int] = []
        for each in self._filters:
            left = candidates if len(kept) == len(candidates) else [candidates[i] for i in kept]
            inner = each.keep(work, left)
            if len(inner) == len(left):
                continue
            if is_hard(each):
                kept = [kept[i] for i in inner]
            elif inner:
                staying = [kept[i] for i in inner]
                # Who came further is asked before those that were left out earlier.
                last[:0] = sorted(set(kept).difference(staying))
                kept = staying
        if candidates and not kept:
            raise NoEndpoints("the scheduling profile's filters left no endpoint")
        return kept, last

    def _score(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[float]:
        columns = []
        for each in self.scorers:
            scores = each.scorer.score(work, candidates)
            if scores:
                columns.append((each.weight, scores))
        if not columns:
            return [1.0] * len(candidates)
        if len(columns) == 1:
            return columns[0][1]
        total = sum(weight for weight, _ in columns)
        mean = [0.0] * len(candidates)
        for weight, scores in columns:
            share = weight / total
            mean = [so_far + share * score for so_far, score in zip(mean, scores, strict=True)]
        return mean

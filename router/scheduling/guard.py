"""Plugins held in check: whatever one does, the request is answered. Pure.

A call that raises, or gives what it must not, is reported and made good: a filter is passed over,
a scorer has no opinion, a score is clamped, a picker's order is completed from the best score to
the worst. Of our own plugins only the number of answers is looked at; those of third parties are
looked through, and get tuples, which they cannot change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import index
from typing import Any, Literal

from kvatlas.router.scheduling.interfaces import (
    Candidate,
    Chance,
    Explains,
    Notes,
    Work,
)
from kvatlas.router.scheduling.pickers import MaxScorePicker

Fault = Literal["raised", "count", "range", "positions"]
"""It raised; gave too many or too few; a score outside [0, 1] or none; positions that are not."""

Report = Callable[[str, Fault, Exception | None], None]
"""Told the plugin's name, its fault, and what it raised, if it did."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """A plugin as a profile runs it.

    Attributes:
        plugin: with the methods of one or more interfaces.
        name: as the configuration has it.
        is_trusted: whether it is one of ours.
        is_hard: whether those that it leaves out must not get the request.
    """

    plugin: Any
    name: str
    report: Report
    is_trusted: bool = False
    is_hard: bool = False
    _takes_notes: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_takes_notes", isinstance(self.plugin, Notes))

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Filter; everybody stays where the plugin fails."""
        everybody = range(len(candidates))
        try:
            if self.is_trusted:
                kept: Sequence[int] = self.plugin.keep(work, candidates)
                return kept
            kept = _whole_numbers(self.plugin.keep(work, tuple(candidates)), len(candidates))
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            self.report(self.name, "raised", error)
            return everybody
        if len(set(kept)) != len(kept) or not all(0 <= i < len(candidates) for i in kept):
            self.report(self.name, "positions", None)
            return everybody
        return sorted(kept)

    def score(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Score; no opinion where the plugin fails."""
        count = len(candidates)
        try:
            if self.is_trusted:
                scores: Sequence[float] = self.plugin.score(work, candidates)
            else:
                scores = _numbers(self.plugin.score(work, tuple(candidates)), count)
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            self.report(self.name, "raised", error)
            return ()
        if len(scores) != count:
            if scores:
                self.report(self.name, "count", None)
            return ()
        if not self.is_trusted and not _in_range(scores):
            self.report(self.name, "range", None)
            return [clamped(score) for score in scores]
        return scores

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> Sequence[int]:
        """Pick; completed from the best score to the worst where the plugin's order is not one."""
        try:
            if self.is_trusted:
                order: Sequence[int] = self.plugin.order(work, scores, chance)
                return order
            order = _whole_numbers(self.plugin.order(work, tuple(scores), chance), len(scores))
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            self.report(self.name, "raised", error)
            return MaxScorePicker().order(work, scores, chance)
        good = [i for i in dict.fromkeys(order) if 0 <= i < len(scores)]
        if len(good) == len(order) == len(scores):
            return good
        self.report(self.name, "positions", None)
        named = set(good)
        rest = MaxScorePicker().order(work, scores, chance)
        return good + [i for i in rest if i not in named]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[Mapping[str, float]]:
        """Give what its scores are made of; nothing where it does not tell."""
        nothing: list[Mapping[str, float]] = [{}] * len(candidates)
        if not isinstance(self.plugin, Explains):
            return nothing
        try:
            told = [_terms(each) for each in self.plugin.terms(work, candidates)]
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            self.report(self.name, "raised", error)
            return nothing
        if len(told) != len(candidates):
            self.report(self.name, "count", None)
            return nothing
        return told

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:
        """Tell it of a decision, if it wants to know."""
        if not self._takes_notes:
            return
        try:
            self.plugin.note(work, candidates, chosen)
        except Exception as error:  # noqa: BLE001 - strangers' code may raise anything
            self.report(self.name, "raised", error)


def clamped(score: float) -> float:
    """Bring a score into [0, 1]; what is not a number is 0."""
    return 0.0 if math.isnan(score) else min(max(score, 0.0), 1.0)


def _numbers(values: Iterable[Any], count: int) -> list[float]:
    """Take one more than are wanted at most: who gives without end gives too many."""
    return [float(value) for value in islice(values, count + 1)]


def _whole_numbers(values: Iterable[Any], count: int) -> list[int]:
    return [index(value) for value in islice(values, count + 1)]


def _in_range(scores: Sequence[float]) -> bool:
    if not scores:
        return True
    # A sum with one that is no number is none either, and equals nothing.
    total = sum(scores)
    return total == total and min(scores) >= 0.0 and max(scores) <= 1.0  # noqa: PLR0124


def _terms(told: Mapping[str, float]) -> dict[str, float]:
    """Keep what can be shown: finite numbers under names."""
    numbers = {str(name): float(value) for name, value in told.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}

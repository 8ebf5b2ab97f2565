"""Scorers that look at one thing each: how good a candidate is, as a number in [0, 1]. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import Candidate, Work


@dataclass(frozen=True, slots=True)
class RequestScorer:
    """Score by requests there, own and others': (1 + fewest) / (1 + own). Ignores matches."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002 - interface
        """Give one score per candidate; the fewest requests score 1."""
        counts = list(map(_requests, candidates))
        fewest = min(counts, default=0)
        return [(1 + fewest) / (1 + n) for n in counts]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:  # noqa: ARG002 - interface
        """Give the requests there."""
        return [{"requests": float(_requests(each))} for each in candidates]


def _requests(candidate: Candidate) -> int:
    load = candidate.load
    return load.requests + load.others_running + load.others_waiting


@dataclass(frozen=True, slots=True)
class EvenScorer:
    """Score everybody the same, so that the picker decides. Ignores matches and load."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002 - interface
        """Give 1 to each."""
        return [1.0] * len(candidates)

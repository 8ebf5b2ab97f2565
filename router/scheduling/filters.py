"""Filters: who may serve a request at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import Candidate, Work


@dataclass(frozen=True, slots=True)
class HealthyFilter:
    """Keep the healthy; when nobody is, keep everybody: a wrong guess must not stop the fleet."""

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of the healthy candidates, or of all."""
        healthy = [i for i, candidate in enumerate(candidates) if candidate.load.healthy]
        return healthy or range(len(candidates))

"""Scorers that look at load: how good a candidate is, as a number in [0, 1]. Pure.

docs/SCHEDULING.md has a paragraph for each, with its formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvatlas.router.scheduling.interfaces import Candidate, Load, Work
from kvatlas.router.scheduling.parameters import Count, Share, Whole, takes_parameters

# ruff: noqa: ARG002 - each is given what the interface says


@takes_parameters
@dataclass(frozen=True, slots=True)
class RequestScorer:
    """Score by requests there, own and others': (1 + fewest) / (1 + own). Ignores matches."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; the fewest requests score 1."""
        counts = [_requests(each.load) for each in candidates]
        fewest = min(counts, default=0)
        return [(1 + fewest) / (1 + n) for n in counts]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:
        """Give the requests there."""
        return [{"requests": float(_requests(each.load))} for each in candidates]


@takes_parameters
@dataclass(frozen=True, slots=True)
class EvenScorer:
    """Score everybody the same, so that the picker decides. Ignores matches and load."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give 1 to each."""
        return [1.0] * len(candidates)


@takes_parameters
@dataclass(frozen=True, slots=True)
class QueueScorer:
    """Score by the engine's own queue: (longest - own) / (longest - shortest)."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 1 to each where all are equal."""
        return _spread([each.load.waiting for each in candidates])


@takes_parameters
@dataclass(frozen=True, slots=True)
class RunningRequestsScorer:
    """Score by running requests: (most - own) / (most - fewest)."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 1 to each where all are equal."""
        return _spread([running(each.load) for each in candidates])


@takes_parameters
@dataclass(frozen=True, slots=True)
class KvUsageScorer:
    """Score by free cache: 1 - share that running requests hold."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate."""
        return [1.0 - min(1.0, each.load.kv_usage) for each in candidates]


@takes_parameters
@dataclass(frozen=True, slots=True)
class LoadAwareScorer:
    """Score by the engine's queue: 0.5 where it is empty, down to 0 at the threshold.

    Attributes:
        threshold: requests that wait; as many or more score 0.
    """

    threshold: Count = 128

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate, 0.5 at most."""
        most = self.threshold
        return [0.5 * (1.0 - min(each.load.waiting, most) / most) for each in candidates]


@takes_parameters
@dataclass(frozen=True, slots=True)
class ActiveRequestScorer:
    """Score by requests that all routers have under way: (most - own) / most.

    Attributes:
        idle_threshold: requests up to which an endpoint counts as idle, which scores 1.
        max_busy_score: what the others score at most.
        in_flight_load_producer_name, request_timeout: taken and not used: there is one board of
            what is under way.
    """

    idle_threshold: Whole = 0
    max_busy_score: Share = 1.0
    in_flight_load_producer_name: str = ""
    request_timeout: str = ""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate."""
        counts = [each.load.requests for each in candidates]
        most, idle = max(counts, default=0), self.idle_threshold
        return [1.0 if n <= idle else (most - n) / most * self.max_busy_score for n in counts]


@takes_parameters
@dataclass(frozen=True, slots=True)
class TokenLoadScorer:
    """Score by uncached prompt tokens that await their first byte: 1 - tokens / threshold.

    Attributes:
        queue_threshold_tokens: tokens; as many or more score 0.
        in_flight_load_producer_name: taken and not used: there is one board of what is under way.
    """

    queue_threshold_tokens: Count = 4_194_304
    in_flight_load_producer_name: str = ""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate."""
        most = self.queue_threshold_tokens
        return [1.0 - min(1.0, each.load.queued_tokens / most) for each in candidates]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:
        """Give the tokens queued there."""
        return [{"queued_tokens": float(each.load.queued_tokens)} for each in candidates]


def running(load: Load) -> int:
    """Count what runs at an endpoint: all that is under way there but does not wait.

    Counts of our routers are of this moment, those of strangers as old as the gauges.
    """
    own_waiting = max(0, load.waiting - load.others_waiting)
    return load.others_running + max(0, load.requests - own_waiting)


def _requests(load: Load) -> int:
    return load.requests + load.others_running + load.others_waiting


def _spread(counts: Sequence[int]) -> list[float]:
    """Score the least 1 and the most 0, the others between."""
    most, fewest = max(counts, default=0), min(counts, default=0)
    if most == fewest:
        return [1.0] * len(counts)
    width = most - fewest
    return [(most - n) / width for n in counts]

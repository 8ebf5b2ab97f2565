"""Filters: who may serve a request, or should. Pure.

docs/SCHEDULING.md has a paragraph for each. Who is left out by a hard filter never gets the
request; who is left out by another is asked last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Load, Work
from kvatlas.router.scheduling.parameters import (
    Amount,
    Positive,
    Share,
    Switch,
    takes_parameters,
)
from kvatlas.router.scheduling.scorers import running

Metric = Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]

GOLDEN: Final = 0.6180339887498949
"""Whose multiples fall evenly into [0, 1), so that one in n turns explores without a draw."""


@takes_parameters
@dataclass(frozen=True, slots=True)
class HealthyFilter:
    """Keep the healthy; when nobody is, keep everybody: a wrong guess must not stop the fleet."""

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of the healthy candidates, or of all."""
        healthy = [candidate.load.healthy for candidate in candidates]
        if all(healthy) or not any(healthy):
            return range(len(candidates))
        return [i for i, is_healthy in enumerate(healthy) if is_healthy]


@takes_parameters
@dataclass(frozen=True, slots=True)
class SessionAffinityFilter:
    """Keep the endpoint that the conversation was on; when it is not there, keep everybody."""

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give its position, or all."""
        if work.session is not None:
            for i, each in enumerate(candidates):
                if each.endpoint == work.session:
                    return [i]
        return range(len(candidates))


@takes_parameters
@dataclass(frozen=True, slots=True)
class Condition:
    """What one metric of an endpoint may be at most."""

    metric: Metric
    max_value: Amount


_METRICS: Final[Mapping[Metric, Callable[[Load], float]]] = {
    "active-requests": lambda load: load.requests,
    "running-requests": running,
    "waiting-queue": lambda load: load.waiting,
    "kv-cache-utilization": lambda load: load.kv_usage,
}


@takes_parameters
@dataclass(frozen=True, slots=True)
class UtilizationFilter:
    """Leave out endpoints of which a metric is above what a condition allows.

    Attributes:
        conditions: all of which must hold; one at least.
        fallback_on_empty: keep everybody where nobody is left, instead of refusing the request.
        in_flight_load_producer_name: taken and not used: there is one board of what is under way.
    """

    conditions: Annotated[Sequence[Condition], Field(min_length=1)]
    fallback_on_empty: Switch = False
    in_flight_load_producer_name: str = ""

    @property
    def is_hard(self) -> bool:
        """Tell that who is left out must not get the request."""
        return not self.fallback_on_empty

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those within all bounds, or of all."""
        bounds = [(_METRICS[each.metric], each.max_value) for each in self.conditions]
        within = [
            i
            for i, each in enumerate(candidates)
            if all(metric(each.load) <= most for metric, most in bounds)
        ]
        if not within and self.fallback_on_empty:
            return range(len(candidates))
        return within


@takes_parameters
@dataclass(frozen=True, slots=True)
class PrefixCacheAffinityFilter:
    """Keep the endpoints that hold most of the prompt, unless that costs too long a wait.

    Attributes:
        affinity_threshold: share of the prompt that an endpoint to be kept holds.
        exploration_probability: share of the requests that pass unfiltered.
        max_ttft_penalty_ms: how much later the first token may come from the best of those kept
            than from the best of the others; 0 for no bound.
        ttft_source: `prefillThroughput` takes queued tokens / `peak_prefill_throughput`,
            `latencyPredictor` our own estimate with what was learned of each endpoint.
        peak_prefill_throughput: tokens per second.
        prefix_match_info_producer_name, in_flight_load_producer_name,
            latency_prediction_info_producer_name: taken and not used: there is one index, and one
            board of what is under way.
    """

    affinity_threshold: Share = 0.8
    exploration_probability: Share = 0.0
    max_ttft_penalty_ms: Annotated[Amount, Field(alias="maxTTFTPenaltyMs")] = 18_000.0
    ttft_source: Literal["prefillThroughput", "latencyPredictor"] = "prefillThroughput"
    peak_prefill_throughput: Positive = 15_928.0
    prefix_match_info_producer_name: str = ""
    in_flight_load_producer_name: str = ""
    latency_prediction_info_producer_name: str = ""

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give the positions of those that hold enough, or of all."""
        everybody = range(len(candidates))
        if work.turn * GOLDEN % 1.0 < self.exploration_probability:
            return everybody
        enough = self.affinity_threshold * max(1, work.prompt_tokens)
        sticky = [i for i in everybody if candidates[i].match_tokens >= enough]
        if not sticky or len(sticky) == len(candidates):
            return everybody
        return everybody if self._is_too_slow(work, candidates, sticky) else sticky

    def _is_too_slow(
        self, work: Work, candidates: Sequence[Candidate], sticky: Sequence[int]
    ) -> bool:
        if not self.max_ttft_penalty_ms:
            return False
        ttfts_ms = [self._ttft_ms(work, each) for each in candidates]
        best_ms = min(ttfts_ms[i] for i in sticky)
        kept = set(sticky)
        other_ms = min(ttft_ms for i, ttft_ms in enumerate(ttfts_ms) if i not in kept)
        return best_ms - other_ms > self.max_ttft_penalty_ms

    def _ttft_ms(self, work: Work, candidate: Candidate) -> float:
        load = candidate.load
        if self.ttft_source == "prefillThroughput":
            return load.queued_tokens / self.peak_prefill_throughput * 1e3
        uncached = max(0, work.prompt_tokens - candidate.predicted_tokens)
        return (load.base_s + load.wait_s(work.now_s) + uncached * load.token_s) * 1e3

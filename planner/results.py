"""What came of a simulation, in figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvatlas.planner.simulation import Outcome


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one simulation. Times are in seconds.

    Attributes:
        requests: that were served.
        ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s: from arrival to first token.
        offered_rps: requests that arrived per second.
        throughput_rps: requests that ended per second, from the first arrival to the last end.
        output_tokens_per_s: alike.
        hit_share: of all prompt tokens, those found cached.
        spread: standard deviation of the prompt tokens that endpoints computed, over their mean.
        peak: most that one of them computed, over their mean.
        goodput: share of requests whose first token came within the limit.
    """

    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    offered_rps: float
    throughput_rps: float
    output_tokens_per_s: float
    hit_share: float
    spread: float
    peak: float
    goodput: float


def figures(outcome: Outcome, ttft_limit_s: float) -> Figures:
    """Sum up an outcome.

    Args:
        outcome: of at least one job.
        ttft_limit_s: time to first token up to which a request counts as served well.
    """
    served = outcome.served
    waits = sorted(each.began_s - each.job.at_s for each in served)
    first_s = served[0].job.at_s
    span_s = max(served[-1].job.at_s - first_s, 1e-9)
    whole_s = max(max(each.ended_s for each in served) - first_s, 1e-9)
    asked = sum(each.job.prompt_tokens for each in served)
    spread, peak = _balance(outcome.prefilled)
    return Figures(
        requests=len(served),
        ttft_mean_s=sum(waits) / len(waits),
        ttft_p50_s=_share(waits, 0.5),
        ttft_p90_s=_share(waits, 0.9),
        ttft_p99_s=_share(waits, 0.99),
        offered_rps=len(served) / span_s,
        throughput_rps=len(served) / whole_s,
        output_tokens_per_s=sum(each.job.output_tokens for each in served) / whole_s,
        hit_share=sum(each.hit_tokens for each in served) / asked,
        spread=spread,
        peak=peak,
        goodput=sum(1 for wait in waits if wait <= ttft_limit_s) / len(waits),
    )


def _share(values: Sequence[float], share: float) -> float:
    """Give the value that so many of the sorted ones do not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _balance(work: Sequence[int]) -> tuple[float, float]:
    mean = sum(work) / len(work)
    if not mean:
        return 0.0, 1.0
    variance = sum((each - mean) ** 2 for each in work) / len(work)
    return variance**0.5 / mean, max(work) / mean

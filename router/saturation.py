"""How full a model's endpoints are, as llm-d's utilization-detector reckons it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from kvatlas.common import limits
from kvatlas.router.scheduling import Load


def saturation(loads: Iterable[Load], now_s: float) -> float:
    """Tell how full they are: 1 or more is full.

    The mean of max(waiting / 5, cache in use / 0.8); an endpoint of which nothing has been seen
    lately counts as full, and so does nobody.

    Args:
        loads: of the endpoints.
        now_s: of the monotonic clock.
    """
    shares = [
        max(load.waiting / limits.SATURATED_WAITING, load.kv_usage / limits.SATURATED_KV_USAGE)
        if load.gauges_age_s(now_s) <= limits.SATURATION_STALE_S
        else 1.0
        for load in loads
    ]
    return fmean(shares) if shares else 1.0

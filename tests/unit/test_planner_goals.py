"""What the default reaches in the simulation: close to the oracle, many routers as one."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from kvatlas.planner import choices
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job
from kvatlas.planner.makers import MAKERS
from kvatlas.planner.plan import Cut, jobs_of, records_of
from kvatlas.planner.results import figures
from kvatlas.planner.routers import Sharing
from kvatlas.planner.simulation import Fleet


def made_jobs(name: str, speedup: float = 1.0, requests: int = 800) -> list[Job]:
    """Make a trace's jobs."""
    cut = Cut(requests=requests, speedup=speedup)
    records = records_of(f"made:{name}", cut, Random(2), list)
    return jobs_of(records, cut, EngineModel(), Random(2))


def mean_s(policy: str, jobs: Sequence[Job], fleet: Fleet) -> float:
    """Give the mean time to first token."""
    return figures(choices.run(policy, jobs, fleet, lambda: Random(1)), 5.0).ttft_mean_s


def test_routers_that_share_are_as_good_as_one() -> None:
    """Sixteen that hear of each other 2 ms late are within a tenth of one, the herd is not."""
    jobs = made_jobs("agents", 12.0, 1_500)
    one = mean_s("kvatlas", jobs, Fleet(8))
    shared = mean_s("kvatlas", jobs, Fleet(8, routers=16, sharing=Sharing(0.002)))
    alone = mean_s("kvatlas", jobs, Fleet(8, routers=16, sharing=Sharing(own_only=True)))
    assert shared < 1.1 * one
    assert alone > 1.3 * one


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_product_is_close_to_who_knows_everything(name: str) -> None:
    """On each made trace its mean is within a tenth of the oracle's, and not over round robin's."""
    jobs = made_jobs(name)
    mean = {each: mean_s(each, jobs, Fleet(8)) for each in ("kvatlas", "oracle", "round-robin")}
    assert mean["kvatlas"] < 1.1 * mean["oracle"]
    assert mean["kvatlas"] < 1.02 * mean["round-robin"] + 0.002

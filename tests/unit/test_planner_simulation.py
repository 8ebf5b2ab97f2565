"""Whole simulations: nobody is lost, chance is repeatable, and what is known decides."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from kvatlas.planner import choices
from kvatlas.planner.engine import EngineModel, Served
from kvatlas.planner.jobs import Job, make_jobs
from kvatlas.planner.makers import made
from kvatlas.planner.results import figures
from kvatlas.planner.routers import Moment, Routers, Sharing
from kvatlas.planner.simulation import Fleet, Outcome

SMALL = EngineModel(cache_blocks=16_000)


def jobs_of(name: str = "agents", speedup: float = 8.0, requests: int = 250) -> list[Job]:
    """Make jobs of a made trace."""
    records = made(name, requests, Random(2))
    return make_jobs(records, 16, [record.at_ms / 1e3 / speedup for record in records])


def run(name: str, jobs: list[Job], fleet: Fleet) -> Outcome:
    """Simulate with a seed."""
    return choices.run(name, jobs, fleet, lambda: Random(5))


@pytest.mark.parametrize("name", choices.NAMES)
@pytest.mark.parametrize("sharing", [Sharing(), Sharing(0.01), Sharing(0.01, races=True)])
def test_every_request_is_served_once(name: str, sharing: Sharing) -> None:
    """Expect each to begin after it came, to end, and to be somewhere, by all policies."""
    jobs = jobs_of()
    outcome = run(name, jobs, Fleet(4, 3, SMALL, sharing=sharing))
    assert Counter(one.job.number for one in outcome.served) == Counter(range(len(jobs)))
    for one in outcome.served:
        assert 0 <= one.endpoint < 4
        assert one.job.at_s <= one.began_s <= one.ended_s
        assert 0 <= one.hit_tokens < one.job.prompt_tokens
    computed = sum(one.job.prompt_tokens - one.hit_tokens for one in outcome.served)
    assert sum(outcome.prefilled) == computed


@pytest.mark.parametrize("name", ["kvatlas", "oracle", "approximate-tree"])
def test_the_same_seed_is_the_same_outcome(name: str) -> None:
    """Expect equal figures again, and of another seed other ones, where there is a choice."""
    jobs = jobs_of("hot-prompt")
    fleet = Fleet(4, 2, SMALL, sharing=Sharing(0.002))
    first, again = (figures(run(name, jobs, fleet), 5.0) for _ in range(2))
    other = figures(choices.run(name, jobs, fleet, lambda: Random(6)), 5.0)
    assert first == again
    # Next to nothing is left to chance where everything is known.
    assert name != "approximate-tree" or first != other


def test_one_board_for_all_is_as_if_each_had_its_own() -> None:
    """Expect little between no delay, where one board stands for all, and a nanosecond."""
    jobs = jobs_of()
    shared, own = (
        figures(run("kvatlas", jobs, Fleet(4, 3, SMALL, sharing=Sharing(delay))), 5.0)
        for delay in (0.0, 1e-9)
    )
    assert own.ttft_mean_s == pytest.approx(shared.ttft_mean_s, rel=0.05)


def test_what_is_known_decides() -> None:
    """Expect the product close to the oracle, and far ahead of who knows nothing of caches."""
    jobs = jobs_of(requests=600)
    waits = {
        name: figures(run(name, jobs, Fleet(4, 1, SMALL)), 5.0).ttft_mean_s
        for name in ("oracle", "kvatlas", "least-requests")
    }
    assert waits["kvatlas"] < 1.2 * waits["oracle"]
    assert waits["kvatlas"] < 0.5 * waits["least-requests"]


def test_routers_that_hear_nothing_of_each_other_are_slower() -> None:
    """Expect the price of not sharing."""
    jobs = jobs_of("no-reuse", 1.0, 600)
    shared, alone = (
        figures(run("kvatlas", jobs, Fleet(4, 8, SMALL, sharing=sharing)), 5.0).ttft_mean_s
        for sharing in (Sharing(0.002), Sharing(own_only=True))
    )
    assert alone > 1.2 * shared


class Listener:
    """A policy that remembers what it hears."""

    shares = True
    scrapes = False

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, float]] = []

    def choose(self, *_: object) -> None:
        """Not asked here."""
        raise AssertionError

    def launched(self, router: int, _served: Served, now_s: float) -> None:
        """Remember."""
        self.heard.append(("launched", router, now_s))

    def began(self, router: int, _served: Served, now_s: float) -> None:
        """Remember."""
        self.heard.append(("began", router, now_s))

    def ended(self, router: int, _served: Served, now_s: float) -> None:
        """Remember."""
        self.heard.append(("ended", router, now_s))


def heard_by(sharing: Sharing) -> list[list[tuple[str, int, float]]]:
    """Let the first of two routers launch at 1 s and its flight begin at 2 s; ask both soon after.

    Returns:
        What the second has heard 4 ms after the launch, and after the first byte.
    """
    made_listeners: list[Listener] = []

    def make(_router: int) -> Listener:
        made_listeners.append(Listener())
        return made_listeners[-1]

    routers = Routers(make, 2, sharing)  # type: ignore[arg-type] # it is never asked to choose
    job = jobs_of(requests=1)[0]
    served = Served(job, 0, 1.0, 1, 1)
    found = []
    for moment, at_s in ((Moment.LAUNCHED, 1.0), (Moment.BEGAN, 2.0)):
        routers.happened(moment, 0, served, at_s)
        assert made_listeners[0].heard[-1] == (moment.value, 0, at_s)
        routers.policy(1, at_s + 0.004)
        found.append(list(made_listeners[1].heard))
    return found


def test_others_hear_later() -> None:
    """Expect a decision to be known at once where it is told in order, the rest after the delay."""
    launch, began = ("launched", 0, 1.0), ("began", 0, 2.001)
    assert heard_by(Sharing(0.002)) == [[launch], [launch, began]]
    assert heard_by(Sharing(0.010)) == [[launch], [launch]]
    late = ("launched", 0, 1.005)
    assert heard_by(Sharing(0.010, races=True)) == [[], [late]]
    assert heard_by(Sharing(own_only=True)) == [[], []]


def test_figures_are_what_they_say() -> None:
    """Expect sums by hand."""
    first, second = jobs_of(requests=2)
    outcome = Outcome(
        [
            Served(first, 0, first.at_s, 1, 1, 10, first.at_s + 1.0, first.at_s + 3.0),
            Served(second, 1, second.at_s, 1, 1, 20, second.at_s + 7.0, second.at_s + 8.0),
        ],
        [100, 300],
    )
    told = figures(outcome, 5.0)
    assert (told.requests, told.goodput) == (2, 0.5)
    assert told.ttft_mean_s == pytest.approx(4.0)
    assert told.hit_share == pytest.approx(30 / (first.prompt_tokens + second.prompt_tokens))
    assert (told.spread, told.peak) == (0.5, 1.5)

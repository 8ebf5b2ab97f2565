"""The loop over virtual time: jobs arrive, routers choose, engines step. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from kvatlas.planner.engine import Ears, Engine, EngineModel, Served
from kvatlas.planner.index import Holders, Index
from kvatlas.planner.jobs import Job, Run
from kvatlas.planner.policy import Gauges, Policy, Sight
from kvatlas.planner.routers import Moment, Routers, Sharing
from kvatlas.router.scheduling import Chance


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated.

    Attributes:
        event_delay_s: from the end of a step until its events are in the index.
        scrape_s: time between two scrapes of all gauges.
    """

    endpoints: int
    routers: int = 1
    engine: EngineModel = field(default_factory=EngineModel)
    event_delay_s: float = 0.05
    scrape_s: float = 0.2
    sharing: Sharing = field(default_factory=Sharing)


@dataclass(frozen=True, slots=True)
class World:
    """What a policy may be made from.

    Attributes:
        engines, holders: for the oracle alone.
        router: whose policy it is.
    """

    fleet: Fleet
    engines: Sequence[Engine]
    holders: Holders
    router: int
    chance: Chance


PolicyMaker = Callable[[World], Policy]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all jobs, in order of arrival.

    Attributes:
        prefilled: prompt tokens that each engine has computed.
    """

    served: Sequence[Served]
    prefilled: Sequence[int]


def simulate(jobs: Sequence[Job], fleet: Fleet, make: PolicyMaker, chance: Chance) -> Outcome:
    """Serve all jobs.

    Args:
        jobs: in order of arrival; each fits into the cache of an engine.
        fleet: that serves them.
        make: makes the policy of a router.
        chance: decides which router a job arrives at, and ties. The same chance, the same outcome.

    Cost: about 0.1 ms per job with 8 endpoints and one router.
    """
    return _Simulation(fleet, make, chance).run(jobs)


class _Simulation:
    def __init__(self, fleet: Fleet, make: PolicyMaker, chance: Chance) -> None:
        self._fleet = fleet
        self._chance = chance
        self._holders = Holders()
        self._index = Index(fleet.event_delay_s)
        self._due: list[tuple[float, int, int]] = []
        self._router_of: list[int] = []
        self._engines = [
            Engine(fleet.engine, self._ears(number)) for number in range(fleet.endpoints)
        ]
        self._routers = Routers(
            lambda router: make(World(fleet, self._engines, self._holders, router, chance)),
            fleet.routers,
            fleet.sharing,
        )
        self._gauges: Sequence[Gauges] = [Gauges(0, 0, 0.0)] * fleet.endpoints
        self._scraped_s = 0.0

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Serve all jobs."""
        served = []
        for job in jobs:
            self._advance(job.at_s)
            served.append(self._arrive(job))
        self._advance(float("inf"))
        return Outcome(served, [engine.prefill_tokens for engine in self._engines])

    def _ears(self, number: int) -> Ears:
        return Ears(
            began=partial(self._told, Moment.BEGAN),
            ended=partial(self._told, Moment.ENDED),
            cached=partial(self._cached, number),
            stepped=partial(self._index.stepped, number),
        )

    def _cached(self, number: int, run: Run, count: int) -> None:
        self._holders.put(number, run, count)
        self._index.changed(number, run, count)

    def _told(self, moment: Moment, served: Served, now_s: float) -> None:
        self._routers.happened(moment, self._router_of[served.job.number], served, now_s)

    def _advance(self, until_s: float) -> None:
        """Let engines step up to a moment."""
        due = self._due
        while due and due[0][0] <= until_s:
            at_s, _, number = heapq.heappop(due)
            engine = self._engines[number]
            # A stretch of decode steps may have been cut, or have begun anew, since.
            if engine.due_s != at_s:
                continue
            if self._routers.scrapes:
                self._scrape(at_s)
            engine.step_over()
            self._schedule(number)

    def _schedule(self, number: int) -> None:
        engine = self._engines[number]
        if engine.due_s >= 0.0:
            heapq.heappush(self._due, (engine.due_s, number, number))

    def _scrape(self, now_s: float) -> None:
        """Read all gauges, if a scrape was due since the last event: nothing has changed since."""
        ticks = int((now_s - self._scraped_s) / self._fleet.scrape_s)
        if ticks < 1:
            return
        self._scraped_s += ticks * self._fleet.scrape_s
        self._gauges = [
            Gauges(engine.running, len(engine.waiting), engine.cache.usage)
            for engine in self._engines
        ]

    def _arrive(self, job: Job) -> Served:
        fleet, now_s = self._fleet, job.at_s
        router = self._chance.randrange(fleet.routers) if fleet.routers > 1 else 0
        self._router_of.append(router)
        if self._routers.scrapes:
            self._scrape(now_s)
        policy = self._routers.policy(router, now_s)
        blocks = self._index.match(job, now_s)
        heard_s = now_s - self._routers.lag_s
        sight = Sight(now_s, blocks, self._gauges, self._scraped_s, heard_s)
        choice = policy.choose(job, sight)
        tokens = choice.uncached_tokens
        served = Served(job, choice.endpoint, now_s, tokens, tokens, launch=choice.launch)
        self._routers.happened(Moment.LAUNCHED, router, served, now_s)
        if self._engines[choice.endpoint].submit(served, now_s):
            self._schedule(choice.endpoint)
        return served

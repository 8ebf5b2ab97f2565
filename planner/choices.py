"""Policies by name, and the product as it is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from kvatlas.common.errors import ConfigError
from kvatlas.common.ids import EndpointName
from kvatlas.common.settings import RouterSettings
from kvatlas.planner import peers
from kvatlas.planner.jobs import Job
from kvatlas.planner.oracle import Oracle
from kvatlas.planner.policy import Policy
from kvatlas.planner.product import Knowledge, Product, Setup
from kvatlas.planner.simulation import Fleet, Outcome, PolicyMaker, World, simulate
from kvatlas.router.profiles import build_profile
from kvatlas.router.scheduling import Chance

ORACLE_PRICES: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 6.0)
"""Prices on work that the oracle tries; the best of them counts."""

_Plain = Callable[[int, int, Chance], Policy]
_PLAIN: Final[Mapping[str, _Plain]] = {
    "round-robin": peers.RoundRobin,
    "least-requests": peers.LeastRequests,
    "consistent-hash": peers.ConsistentHash,
    "approximate-tree": peers.ApproximateTree,
    "block-cost": peers.BlockCost,
    "gauges": peers.GaugeScores,
}
KVATLAS: Final = "kvatlas"
ORACLE: Final = "oracle"
NAMES: Final = (KVATLAS, ORACLE, *_PLAIN)


def known(names: Sequence[str]) -> None:
    """Check names of policies.

    Raises:
        ConfigError: the operator's; with a line for each that is unknown.
    """
    faults = [
        f"--policy {name}: is none of {', '.join(NAMES)}" for name in names if name not in NAMES
    ]
    if faults:
        raise ConfigError(faults)


def run(
    name: str,
    jobs: Sequence[Job],
    fleet: Fleet,
    chances: Callable[[], Chance],
    settings: RouterSettings | None = None,
) -> Outcome:
    """Simulate one policy; the oracle with each of its prices, of which the best is given.

    Args:
        name: one of NAMES.
        jobs: in order of arrival.
        fleet: that serves them.
        chances: gives the same chance anew.
        settings: of the routers; the default ones when left out.
    """
    if name != ORACLE:
        return simulate(jobs, fleet, _maker(name, settings or RouterSettings()), chances())
    # It has everything shared at once, so more routers are no other oracle.
    alone = replace(fleet, routers=1)
    tries = (simulate(jobs, alone, oracle(price), chances()) for price in ORACLE_PRICES)
    return min(tries, key=_mean_wait_s)


def _mean_wait_s(outcome: Outcome) -> float:
    return sum(each.began_s - each.job.at_s for each in outcome.served)


def oracle(work_price: float) -> PolicyMaker:
    """Give what makes the oracle with a price on work."""
    return lambda world: Oracle(world.engines, world.holders, work_price, world.chance)


def product(settings: RouterSettings) -> PolicyMaker:
    """Give what makes a router of the product; each has its own profile, whose plugins remember."""

    def make(world: World) -> Policy:
        fleet = world.fleet
        alone = fleet.sharing.own_only and fleet.routers > 1
        return Product(
            Setup(
                names=[EndpointName(f"engine-{n}:8000") for n in range(fleet.endpoints)],
                profile=build_profile(settings),
                block_size=fleet.engine.block_size,
                believed_tokens_per_s=settings.prefill_tokens_per_s,
                knowledge=Knowledge(fleet.routers, trust=0.0 if alone else 1.0, copies=alone),
            ),
            world.router,
            world.chance,
        )

    return make


def _maker(name: str, settings: RouterSettings) -> PolicyMaker:
    if name == KVATLAS:
        return product(settings)
    make = _PLAIN[name]
    return lambda world: make(world.fleet.endpoints, world.fleet.engine.block_size, world.chance)

"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvatlas.common.ids import EndpointName
from kvatlas.planner import peers
from kvatlas.planner.oracle import Oracle
from kvatlas.planner.policy import Policy
from kvatlas.planner.product import Knowledge, Product
from kvatlas.planner.simulation import PolicyMaker, World
from kvatlas.router.scheduling import (
    Chance,
    CostScorer,
    HealthyFilter,
    MaxScorePicker,
    Profile,
    Weighted,
)

ORACLE_PRICE: Final = 3.0
"""What the oracle does best with, of 0 to 6, on most traces near saturation."""

_Plain = Callable[[int, int, Chance], Policy]
_PLAIN: Final[Mapping[str, _Plain]] = {
    "round-robin": peers.RoundRobin,
    "least-requests": peers.LeastRequests,
    "consistent-hash": peers.ConsistentHash,
    "approximate-tree": peers.ApproximateTree,
    "block-cost": peers.BlockCost,
    "gauges": peers.GaugeScores,
}
NAMES: Final = ("kvatlas", "oracle", *_PLAIN)


def default_profile(work_price: float | None = None) -> Profile:
    """Give the product's default profile."""
    scorer = CostScorer() if work_price is None else CostScorer(work_price)
    return Profile((HealthyFilter(),), (Weighted(scorer),), MaxScorePicker())


def maker(name: str, work_price: float | None = None) -> PolicyMaker:
    """Give what makes a policy.

    Args:
        name: one of NAMES.
        work_price: of `kvatlas` and `oracle`, where it is not the default one.
    """
    if name == "oracle":
        price = ORACLE_PRICE if work_price is None else work_price
        return lambda world: Oracle(world.engines, world.holders, price, world.chance)
    if name == "kvatlas":
        return product_maker(default_profile(work_price))
    make = _PLAIN[name]
    return lambda world: make(world.fleet.endpoints, world.fleet.engine.block_size, world.chance)


def product_maker(profile: Profile) -> PolicyMaker:
    """Give what makes a router of the product with a profile."""

    def make(world: World) -> Policy:
        fleet = world.fleet
        alone = fleet.sharing.own_only and fleet.routers > 1
        return Product(
            [EndpointName(f"engine-{number}:8000") for number in range(fleet.endpoints)],
            profile,
            fleet.engine.block_size,
            world.chance,
            me=world.router,
            knowledge=Knowledge(fleet.routers, trust=0.0 if alone else 1.0, copies=alone),
        )

    return make

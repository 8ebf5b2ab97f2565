"""Follow what rules the pools: objectives and rewrites, of both groups of their API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

from kvatlas.common.discovery_settings import PoolDiscovery
from kvatlas.common.kube.objects import Read
from kvatlas.common.kube.resources import OBJECTIVES, REWRITES, Resource, Selection, called
from kvatlas.common.kube.rules import read_objective, read_rewrite
from kvatlas.common.kube.watch import Api, Watch
from kvatlas.common.pool_rules import NO_RULES, Identity, Objective, PoolRules, Rewrite
from kvatlas.common.tasks import Supervisor

T = TypeVar("T", Objective, Rewrite)


class RulesWatch:
    """Know what is ruled for pools.

    Args:
        api: how the API server is asked; its own.
        pools: the pools; only what names one of them, in its namespace, counts.

    Attributes:
        current: what is ruled at this moment.
        changed: called when they change.
    """

    def __init__(
        self,
        api: Api,
        pools: Iterable[PoolDiscovery],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.current: PoolRules = NO_RULES
        self.changed = changed
        self._api = api
        self._pools: dict[str | None, set[str]] = {}
        for pool in pools:
            self._pools.setdefault(pool.namespace, set()).add(pool.name)
        self._objectives = self._watches(OBJECTIVES, read_objective)
        self._rewrites = self._watches(REWRITES, read_rewrite)

    def is_known(self) -> bool:
        """Tell whether everything has been listed once."""
        return all(watch.is_known for _, watch in self._objectives) and all(
            watch.is_known for _, watch in self._rewrites
        )

    def ruled(self) -> PoolRules:
        """Give what is ruled at this moment."""
        return self.current

    async def run(self) -> None:
        """Follow them, for ever; there must be a pool."""
        try:
            async with Supervisor() as tasks:
                followed = [
                    *(tasks.start(watch.run(), "objectives") for _, watch in self._objectives),
                    *(tasks.start(watch.run(), "rewrites") for _, watch in self._rewrites),
                ]
                await asyncio.wait(followed)
        finally:
            await self._api.client.aclose()

    def _watches(
        self, resources: Iterable[Resource], read: Read[T]
    ) -> list[tuple[str | None, Watch[T]]]:
        """Make the watches, of the group that wins first."""
        return [
            (namespace, Watch(self._api, _all_of(resource, namespace), read, self._told))
            for resource in resources
            for namespace in self._pools
        ]

    def _told(self) -> None:
        rules = PoolRules.of(self._counting(self._objectives), self._counting(self._rewrites))
        if rules != self.current:
            self.current = rules
            self.changed()

    def _counting(self, watches: list[tuple[str | None, Watch[T]]]) -> list[T]:
        """List what counts: each once, though it be there in both groups."""
        found: dict[tuple[str, str], T] = {}
        for namespace, watch in watches:
            for each in watch.objects.by_name.values():
                identity: Identity = each.identity
                if not identity.pools.isdisjoint(self._pools[namespace]):
                    found.setdefault((identity.namespace, identity.name), each)
        return list(found.values())


def _all_of(resource: Resource, namespace: str | None) -> Selection:
    return Selection(resource, namespace, called(resource, namespace))

"""What one indexer should do for all: sweep, and forget endpoints that are gone.

Each shard's chores fall to one of the indexers that are alive, as they all see it; should two do
them at once, no harm is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.keyspace import Shard
from kvatlas.common.log import logger
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.ownership import Ownership
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.sweep import sweep_once
from kvatlas.indexer.targets import Target

_LOG = logger("chores")

LOOK_S: Final = 2.0


class Chores:
    """Do them.

    Args:
        ownership: tells which chores are ours, and which endpoints are configured.
        store: to write with.
        metrics: of the process.
        shards: lists all shards.
    """

    def __init__(
        self,
        ownership: Ownership,
        store: IndexStore,
        metrics: IndexerMetrics,
        shards: Callable[[], Sequence[Shard]],
    ) -> None:
        self._ownership = ownership
        self._store = store
        self._metrics = metrics
        self._shards = shards
        self._unknown_since: dict[Target, float] = {}

    async def run(self) -> None:
        """Do what is ours, for ever; faults of Redis delay it."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except IndexUnavailable as error:
                self._metrics.store_errors.labels(error.reason).inc()

    async def _look(self) -> None:
        unknown: set[Target] = set()
        for shard in self._shards():
            if not self._ownership.does(shard.base):
                continue
            dead = await self._store.dead_holders(shard)
            if dead.texts:
                await sweep_once(self._store, shard, dead, self._metrics)
            known = await self._store.known_endpoints(shard)
            unknown |= {
                Target(name, shard) for name in known if self._ownership.is_gone(name, shard)
            }
        now = monotonic()
        self._unknown_since = {each: self._unknown_since.get(each, now) for each in unknown}
        for target, since in list(self._unknown_since.items()):
            if now - since >= limits.RETIRE_AFTER_S and await self._ownership.retire(target):
                del self._unknown_since[target]
                _LOG.info("endpoint.retired", endpoint=target.name)

"""Look after Redis itself: a full one, one that may drop our keys, one that has lost some.

What is found is counted, and said once when it begins and once when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import randbelow
from typing import Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.keyspace import Shard
from kvatlas.common.log import logger
from kvatlas.common.redis_client import ServerFacts
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import FULL, Mirror
from kvatlas.indexer.store import IndexStore

_LOG = logger("store")

UNSAFE: Final = "allkeys-"
"""Begins the names of the policies that drop keys which nobody said may go; ours have no expiry."""

NOTHING_EVICTED: Final = (("", 0), float("-inf"))
FLOOR_LEAST: Final = 1_000_000
FLOORS: Final = 1_000_000_000
"""Ids begin anew at a random number, so that none is met twice."""


class StoreWatch:
    """Report on the servers that hold the index.

    Args:
        store: asked.
        metrics: told.
    """

    def __init__(self, store: IndexStore, metrics: IndexerMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._unsafe: frozenset[str] = frozenset()
        self._is_full = False
        self._foreign = 0
        self._audited_at = monotonic()
        self._evicted: dict[Shard, tuple[tuple[str, int], float]] = {}

    async def look(self, servers: Mapping[Shard, ServerFacts], mirrors: Sequence[Mirror]) -> None:
        """Look once.

        Args:
            servers: what the server of each shard says of itself.
            mirrors: of the endpoints that are ours.

        Raises:
            IndexUnavailable: Redis is not reached.
        """
        self._note_full(sum(mirror.failing == FULL for mirror in mirrors))
        self._note_foreign()
        policies = {facts.policy for facts in servers.values()}
        self._note_policies(frozenset(p for p in policies if p.startswith(UNSAFE)))
        for shard, facts in servers.items():
            await self._note_evicted(
                shard, facts, [mirror for mirror in mirrors if mirror.target.shard == shard]
            )
        if monotonic() - self._audited_at >= limits.AUDIT_S:
            self._audited_at = monotonic()
            for shard in servers:
                await self._audit(shard, [m for m in mirrors if m.target.shard == shard])

    def _note_full(self, waiting: int) -> None:
        self._metrics.full.set(waiting)
        if bool(waiting) != self._is_full:
            self._is_full = bool(waiting)
            if waiting:
                _LOG.error("store.full", endpoints=waiting)
            else:
                _LOG.info("store.has_room")

    def _note_policies(self, unsafe: frozenset[str]) -> None:
        self._metrics.policy_unsafe.set(bool(unsafe))
        if unsafe != self._unsafe:
            self._unsafe = unsafe
            if unsafe:
                _LOG.warning("store.policy_unsafe", policies=sorted(unsafe))
            else:
                _LOG.info("store.policy_safe")

    def _note_foreign(self) -> None:
        more = self._store.foreign - self._foreign
        if more:
            self._foreign += more
            self._metrics.foreign.inc(more)
            _LOG.error("store.foreign_keys", entries=more)

    async def _note_evicted(
        self, shard: Shard, facts: ServerFacts, mirrors: Sequence[Mirror]
    ) -> None:
        """Write a shard anew that may have lost keys, under ids that no entry can name.

        Without the map of holders, or that of dead ones, ids would be given out again that
        entries still name: matches that are not there.
        """
        known, rewritten_at = self._evicted.get(shard, NOTHING_EVICTED)
        found = (facts.run_id, facts.evicted)
        is_new = facts.evicted and found != known
        if not is_new or monotonic() - rewritten_at < limits.EVICTED_REST_S:
            return
        self._evicted[shard] = found, monotonic()
        _LOG.error("store.evicted", shard=shard.base, keys=facts.evicted)
        await self._store.raise_ids(shard, FLOOR_LEAST + randbelow(FLOORS))
        for mirror in mirrors:
            mirror.rewrite("evicted")

    async def _audit(self, shard: Shard, mirrors: Sequence[Mirror]) -> None:
        """Have endpoints written again whose holders Redis has lost, as an eviction may do."""
        expected = {mirror.target: mirror.holders() for mirror in mirrors}
        found = await self._store.live_holders(shard)
        for mirror in mirrors:
            wanted = expected[mirror.target]
            # What has changed while Redis was asked will be looked at next time.
            if wanted == mirror.holders() and any(
                found.get(number, b"").partition(b" medium=")[0] != text.encode()
                for number, text in wanted.items()
            ):
                mirror.rewrite("index_lost")

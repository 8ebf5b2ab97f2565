"""Share the endpoints with other indexers: take, keep and give back. `shares` decides.

Nobody leads. An endpoint whose owner is alive stays with it, whatever Redis has lost meanwhile:
who could take it waits until owners have had the time to take back what is theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName, Fence, IndexerId
from kvatlas.common.keyspace import Shard
from kvatlas.common.log import logger
from kvatlas.common.tasks import Supervisor
from kvatlas.indexer.discovery import Source
from kvatlas.indexer.following import Following, Means
from kvatlas.indexer.leases import Lease, Leases
from kvatlas.indexer.shares import View, chosen, plan
from kvatlas.indexer.targets import Target

_LOG = logger("ownership")

NOBODY: Final = Fleet([])
TICKS_PER_LEASE: Final = 6
"""Leases are renewed so often that several calls in a row may fail."""


class Ownership:
    """What one indexer owns.

    Args:
        me: the indexer.
        leases: in Redis.
        lease_s: how long they hold.
        means: what followings need.
    """

    def __init__(self, me: IndexerId, leases: Leases, lease_s: float, means: Means) -> None:
        self.me = me
        self.alive: Sequence[IndexerId] = (me,)
        self.followings: dict[EndpointName, Following] = {}
        self._leases = leases
        self._lease_s = lease_s
        self._means = means
        self._sources: dict[EndpointName, Source] = {}
        self._shards: Sequence[Shard] = ()
        self._fleet = NOBODY
        self._busy: dict[EndpointName, Target] = {}
        """Endpoints that are being taken or given back."""
        self._free_since: dict[EndpointName, float] = {}
        self._recalls = asyncio.Semaphore(limits.RECALLS_AT_ONCE_MAX)
        self._contact_since: float | None = None
        self._is_known = False
        self._is_leaving = False
        self.failing: str | None = None
        """Why the last look at the leases failed, if it did."""
        self._lost_at = float("-inf")

    def configure(
        self, sources: Iterable[Source], shards: Sequence[Shard], fleet: Fleet = NOBODY
    ) -> None:
        """Say which endpoints there are; those that are no longer are given back.

        Args:
            sources: of those that have events.
            shards: of all models.
            fleet: that they are of; says who may turn up yet.
        """
        before, self._sources = self._sources, {source.endpoint.name: source for source in sources}
        self._shards = shards
        self._fleet = fleet
        for name in before:
            self._forget_counts(name)

    def is_gone(self, name: EndpointName, shard: Shard) -> bool:
        """Tell whether an endpoint that the index knows in a shard is there no longer."""
        return self.shard_of(name) != shard and not self._fleet.may_hold(name.partition("#")[0])

    def shard_of(self, name: EndpointName) -> Shard | None:
        """Give the shard of a configured endpoint, None for others."""
        source = self._sources.get(name)
        return source.shard if source else None

    def does(self, chore: str) -> bool:
        """Tell whether a chore that one indexer should do is ours."""
        return chosen(self.alive, chore) == self.me

    async def run(self, tasks: Supervisor, ready: asyncio.Event) -> None:
        """Take, keep and give back, for ever. Faults of Redis are waited out.

        Args:
            tasks: what is followed runs in.
            ready: set when Redis may be written.
        """
        await ready.wait()
        while True:
            try:
                await self._tick(tasks)
                self.failing = None
            except IndexUnavailable as error:
                self.failing = error.reason
                self._contact_since = None
                self._lost_at = monotonic()
                self._means.metrics.store_errors.labels(error.reason).inc()
            await asyncio.sleep(self._lease_s / TICKS_PER_LEASE)

    async def leave(self) -> None:
        """Give everything back, and take nothing any more."""
        self._is_leaving = True
        try:
            async with asyncio.timeout(2 * limits.LEAVE_S):
                await asyncio.gather(*map(self._give_back, list(self.followings.values())))
                await self._leases.leave()
        except (TimeoutError, IndexUnavailable) as error:
            _LOG.warning("indexer.left_behind", error=type(error).__name__)

    async def retire(self, target: Target) -> bool:
        """Forget an endpoint for good that nobody follows; False when somebody does."""
        fence = await self._leases.claim(target)
        if fence is None:
            return False
        claimed = Target(target.name, target.shard, fence)
        return await self._means.store.retire(claimed, time.time())

    # --- one look -----------------------------------------------------------------------------

    async def _tick(self, tasks: Supervisor) -> None:
        now = monotonic()
        self.alive, is_known = await self._leases.announce()
        if self._is_known and not is_known:
            # Redis has lost what it knew, so others must have the time to say what is theirs.
            self._lost_at = now
        self._is_known = True
        leases = await self._renew()
        if self._contact_since is None:
            self._contact_since = now
        await self._look_after_mine(leases)
        if not self._is_leaving:
            self._share(leases, now, tasks)
        self._means.metrics.owned.set(len(self.followings))

    def _share(self, leases: Mapping[EndpointName, Lease], now: float, tasks: Supervisor) -> None:
        """Begin to take what we lack of our share, and to give back what is above it."""
        free = self._free(leases, now)
        decided = plan(
            View(
                me=self.me,
                alive=self.alive,
                endpoints=len(self._sources),
                mine=self.followings.keys() | self._busy.keys(),
                free=free,
                neglected={n for n in free if now - self._free_since[n] > 2 * self._lease_s},
            )
        )
        for name in decided.claim:
            source = self._sources[name]
            self._busy[name] = Target(name, source.shard)
            tasks.start(self._take(source, tasks), f"take {name}")
        gone = {
            name
            for name, following in self.followings.items()
            if self._sources.get(name) != following.source
        }
        for name in {*gone, *decided.resign} & self.followings.keys():
            tasks.start(self._give_back(self.followings[name]), f"give back {name}")

    async def _renew(self) -> dict[EndpointName, Lease]:
        """Renew our leases; give those of all endpoints."""
        mine: dict[Shard, dict[EndpointName, Fence]] = {shard: {} for shard in self._shards}
        targets = {name: each.mirror.target for name, each in self.followings.items()}
        for target in {**self._busy, **targets}.values():
            if target.fence:
                mine.setdefault(target.shard, {})[target.name] = target.fence
        answers = await asyncio.gather(*(self._leases.renew(*each) for each in mine.items()))
        return {name: lease for answer in answers for name, lease in answer.items()}

    async def _look_after_mine(self, leases: Mapping[EndpointName, Lease]) -> None:
        """Take back what Redis lost; leave what is another's."""
        for name, following in list(self.followings.items()):
            if name in self._busy:
                continue
            lease = leases.get(name)
            if lease is not None and self._is_held(following, lease):
                continue
            fence = None
            if lease is None or lease.owner == self.me:
                fence = await self._leases.claim(following.mirror.target)
            if fence is not None:
                following.mirror.fence_changed(fence)
            elif self.followings.pop(name, None):
                _LOG.warning("endpoint.lost", endpoint=name)
                self._means.metrics.lost.inc()
                await following.abandon()
                self._forget_counts(name)

    def _is_held(self, following: Following, lease: Lease) -> bool:
        is_mine = lease.owner == self.me and lease.fence == following.fence
        # Refused in spite of its lease: Redis has lost the endpoint's state.
        return is_mine and not following.mirror.is_fenced

    def _free(self, leases: Mapping[EndpointName, Lease], now: float) -> set[EndpointName]:
        """List the endpoints that nobody has and that we may take."""
        is_calm = now - self._lost_at >= self._lease_s
        in_contact = self._contact_since is not None and now - self._contact_since >= self._lease_s
        free = set()
        for name in self._sources.keys() - self.followings.keys() - self._busy.keys():
            lease = leases.get(name)
            if lease is None:
                is_free = is_calm
            else:
                is_free = lease.owner == self.me or (lease.left_ms <= 0 and in_contact)
            if is_free:
                free.add(name)
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        return free

    # --- taking and giving back ---------------------------------------------------------------

    async def _take(self, source: Source, tasks: Supervisor) -> None:
        name = source.endpoint.name
        target = self._busy[name]
        try:
            async with self._recalls:
                fence = await self._leases.claim(target)
                if fence is None:
                    return
                target = self._busy[name] = Target(name, source.shard, fence)
                left = await self._means.store.remembered(target)
                following = Following(source, fence, self._means, left)
        except IndexUnavailable as error:
            self._means.metrics.store_errors.labels(error.reason).inc()
            return
        finally:
            del self._busy[name]
        self.followings[name] = following
        following.start(tasks)

    async def _give_back(self, following: Following) -> None:
        target = following.mirror.target
        if target.name in self._busy:
            return
        self._busy[target.name] = target
        try:
            await following.stop()
            await self._leases.resign(following.mirror.target)
        except IndexUnavailable as error:
            self._means.metrics.store_errors.labels(error.reason).inc()
        finally:
            self.followings.pop(target.name, None)
            del self._busy[target.name]
            self._forget_counts(target.name)
        _LOG.info("endpoint.given_back", endpoint=target.name)

    def _forget_counts(self, name: EndpointName) -> None:
        """Let metrics forget an endpoint that is there no longer, when we are done with it."""
        if not (name in self._sources or name in self.followings or name in self._busy):
            self._means.metrics.forget("endpoint", name)

"""Who follows which endpoint: signs of life and leases in Redis.

A lease names its owner and a fence, a number that grows with every owner. Each write of an owner
names its fence (`store`), so one that was paused for longer than its lease writes nothing once
another has taken the endpoint. All times are those of Redis' clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvatlas.common.ids import EndpointName, Fence, IndexerId
from kvatlas.common.keyspace import INDEXERS_KEY, Shard
from kvatlas.common.redis_client import Script, flat, guard
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.indexer.targets import Target


@dataclass(frozen=True, slots=True)
class Lease:
    """An endpoint's owner.

    Attributes:
        left_ms: for how long the lease still holds; below zero when it is over.
    """

    owner: IndexerId
    fence: Fence
    left_ms: int


class Leases:
    """The leases in Redis.

    Every method raises IndexUnavailable when Redis does not answer in REDIS_WRITE_S, or refuses.

    Args:
        client: as for the store.
        me: in whose name.
        lease_ms: how long a lease, and a sign of life, holds.
    """

    def __init__(self, client: OneRedis | RoutedRedis, me: IndexerId, lease_ms: int) -> None:
        self._client = client
        self._me = me
        self._lease_ms = lease_ms
        self._announce = Script("announce")
        self._renew = Script("renew")
        self._claim = Script("claim")
        self._resign = Script("resign")

    async def announce(self) -> tuple[list[IndexerId], bool]:
        """Give a sign of life.

        Returns:
            The indexers that are alive, ourselves among them; and whether Redis knew of us.
        """
        args = (self._me, self._lease_ms)
        new, *alive = await self._announce.run(self._client, (INDEXERS_KEY,), args)
        return sorted(IndexerId(name.decode(errors="replace")) for name in alive), not new

    async def leave(self) -> None:
        """Take our sign of life back, so that others need not wait for it to end."""
        with guard():
            await self._client.hdel(INDEXERS_KEY, self._me)

    async def renew(
        self, shard: Shard, mine: Mapping[EndpointName, Fence]
    ) -> dict[EndpointName, Lease]:
        """Renew our leases in a shard.

        Returns:
            All leases of the shard as they stand then. One of ours that is another's there, or
            missing, is lost.
        """
        args = (self._me, self._lease_ms, *flat(mine))
        now_ms, *found = await self._renew.run(self._client, (shard.owners,), args)
        leases = {}
        for name, text in zip(found[::2], found[1::2], strict=True):
            lease = _read_lease(text, now_ms)
            if lease is not None:
                leases[EndpointName(name.decode(errors="replace"))] = lease
        return leases

    async def claim(self, target: Target) -> Fence | None:
        """Take an endpoint; None when another's lease still holds."""
        keys = (target.key, target.shard.owners)
        args = (target.name, self._me, self._lease_ms)
        return Fence(await self._claim.run(self._client, keys, args)) or None

    async def resign(self, target: Target) -> bool:
        """Give an endpoint back; False when it is no longer ours."""
        keys = (target.key, target.shard.owners)
        return bool(await self._resign.run(self._client, keys, (target.name, target.fence)))


def _read_lease(text: bytes, now_ms: int) -> Lease | None:
    """Read a value of the owners; None for a foreign one, which counts as no lease."""
    try:
        owner, fence, until_ms = text.decode().split(" ")
        return Lease(IndexerId(owner), Fence(int(fence)), int(until_ms) - now_ms)
    except ValueError:
        return None

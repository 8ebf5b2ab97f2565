"""Have engines announce what requests hit, where the indexer knows their cache in part only.

vLLM from 0.30 on does it for requests with `vllm_xargs: {"kv_cache_report_mode": "full"}`. The
indexer says for which endpoints such announcements are expected: anywhere else they would be
counted as copies. Clients cannot ask for it themselves (`body.STEERING`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import Shard
from kvatlas.common.log import logger
from kvatlas.common.redis_client import connect, guard
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.router.endpoint import Endpoint

_LOG = logger("relearning")

MEMBER: Final = "vllm_xargs"
VALUE: Final = b'{"kv_cache_report_mode":"full"}'
VERSION_MIN: Final = (0, 30)
CONNECTIONS: Final = 1


class Relearning:
    """Which endpoints are being relearned, as of the last look.

    Args:
        redis: where the index is.
        shards: of the models whose endpoints may be relearned.
    """

    def __init__(self, redis: str | RedisSettings, shards: Sequence[Shard]) -> None:
        self._client = connect(
            redis,
            timeout_s=limits.REDIS_WRITE_S,
            connections_max=CONNECTIONS,
            reads_only=True,
        )
        self._shards = shards
        self._names: frozenset[EndpointName] = frozenset()

    def wants(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
        """Tell whether a request, counted in there, should make an endpoint announce what it hits.

        Not while something waits there: a request that waits is announced at every step. And not
        where the client's body has a member of that name.
        """
        version = endpoint.facts.version
        return (
            endpoint.name in self._names
            and version is not None
            and version >= VERSION_MIN
            and not endpoint.others_waiting
            and endpoint.awaited <= 1
            and MEMBER not in body
        )

    async def run(self) -> None:
        """Look for ever. Without Redis nothing is relearned."""
        while True:
            try:
                found = await self._look()
            except IndexUnavailable:
                found = frozenset()
            if found != self._names:
                _LOG.info("endpoints.relearned", count=len(found))
                self._names = found
            await asyncio.sleep(limits.RELEARN_POLL_S)

    async def _look(self) -> frozenset[EndpointName]:
        names: set[EndpointName] = set()
        with guard():
            for shard in self._shards:
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    found: Mapping[Any, Any] = await self._client.hgetall(shard.relearning)
                names.update(EndpointName(name.decode(errors="replace")) for name in found)
        return frozenset(names)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

"""Have engines announce what requests hit, where the indexer knows their cache in part only.

vLLM from 0.30 on does it for requests with `vllm_xargs: {"kv_cache_report_mode": "full"}`. The
indexer says for which endpoints such announcements are expected: anywhere else they would be
counted as copies. Clients cannot ask for it themselves (`body.STEERING`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import EndpointName, Epoch
from kvatlas.common.keyspace import Shard, read_epoch
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
        epoch_of: the epoch that lookups see, None while the endpoint holds nothing. When it is
            another one, what is announced would be counted.
    """

    def __init__(
        self,
        redis: str | RedisSettings,
        shards: Sequence[Shard],
        epoch_of: Callable[[Shard, EndpointName], Epoch | None],
    ) -> None:
        self._client = connect(
            redis,
            timeout_s=limits.REDIS_WRITE_S,
            connections_max=CONNECTIONS,
            reads_only=True,
        )
        self._shards = shards
        self._epoch_of = epoch_of
        self._epochs: dict[EndpointName, Epoch] = {}

    def wants(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bool:
        """Tell whether a request, counted in there, should make an endpoint announce what it hits.

        Not while something waits there: a request that waits is announced at every step. And not
        where the client's body has a member of that name.
        """
        epoch, version = self._epochs.get(endpoint.name), endpoint.facts.version
        return (
            epoch is not None
            and self._epoch_of(endpoint.shard, endpoint.name) in (None, epoch)
            and version is not None
            and version >= VERSION_MIN
            and not endpoint.others_waiting
            and endpoint.awaiting <= 1
            and MEMBER not in body
        )

    async def run(self) -> None:
        """Look for ever. Without Redis nothing is relearned."""
        while True:
            try:
                found = await self._look()
            except IndexUnavailable:
                found = {}
            if found != self._epochs:
                _LOG.info("endpoints.relearned", count=len(found))
                self._epochs = found
            await asyncio.sleep(limits.RELEARN_POLL_S)

    async def _look(self) -> dict[EndpointName, Epoch]:
        epochs: dict[EndpointName, Epoch] = {}
        with guard():
            for shard in self._shards:
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    found: Mapping[Any, Any] = await self._client.hgetall(shard.relearning)
                for name, text in found.items():
                    if (epoch := read_epoch(text)) is not None:
                        epochs[EndpointName(name.decode(errors="replace"))] = epoch
        return epochs

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

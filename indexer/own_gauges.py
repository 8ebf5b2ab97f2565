"""Read what is shared of the gauges of endpoints that are ours, whoever looked at their engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kvatlas.common import limits
from kvatlas.common.gauges import SharedSample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import guard
from kvatlas.common.redis_routed import OneRedis, RoutedRedis


class OwnGauges:
    """The shared gauges of some endpoints.

    Args:
        client: as for the store.
    """

    def __init__(self, client: OneRedis | RoutedRedis) -> None:
        self._client = client

    async def read(
        self, model: ModelName, names: Sequence[EndpointName]
    ) -> AsyncIterator[tuple[EndpointName, SharedSample]]:
        """Go through the samples that there are.

        Raises:
            IndexUnavailable: Redis did not answer in REDIS_WRITE_S, or refused.

        Cost: 5 us for each; other work gets its turn in between.
        """
        key = LoadKeys(model).gauges
        for start in range(0, len(names), limits.GAUGES_TURN):
            some = list(names[start : start + limits.GAUGES_TURN])
            with guard():
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    texts: list[Any] = await self._client.hmget(key, some)
            for name, text in zip(some, texts, strict=True):
                try:
                    told = None if text is None else SharedSample.from_text(text.decode())
                except ValueError:  # a foreign or newer writer's
                    continue
                if told is not None:
                    yield name, told

"""Read from Redis what indexers have seen of engines' gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import Script, guard
from kvatlas.common.redis_routed import OneRedis, RoutedRedis


@dataclass(frozen=True, slots=True)
class GaugeTexts:
    """The gauges of a model as they stand.

    Attributes:
        now_ms: by Redis' clock, when they were read.
        texts: of `SharedSample`, by endpoint.
    """

    now_ms: int
    texts: Mapping[EndpointName, bytes]

    @property
    def size(self) -> int:
        """Give their size in bytes, about."""
        return sum(len(name) + len(text) for name, text in self.texts.items())


class GaugeReader:
    """The shared gauges in Redis, for reading.

    Args:
        client: of the masters: a replica's clock is another one, and does not tell ages.
        may_write: the client's user may write, and so need not have the right to call scripts in
            the form for those who may not.
    """

    def __init__(self, client: OneRedis | RoutedRedis, *, may_write: bool = False) -> None:
        self._client = client
        self._script = Script("read_gauges", reads_only=not may_write)

    async def read(self, keys: LoadKeys) -> GaugeTexts:
        """Read a model's gauges.

        Raises:
            IndexUnavailable: Redis did not answer in REDIS_WRITE_S, or refused.
        """
        with guard():
            async with asyncio.timeout(limits.REDIS_WRITE_S):
                now_ms, *found = await self._script.run(self._client, (keys.gauges,), ())
        names = (EndpointName(name.decode(errors="replace")) for name in found[::2])
        return GaugeTexts(int(now_ms), dict(zip(names, found[1::2], strict=True)))

"""Read from Redis what indexers have seen of engines' gauges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import Script
from kvatlas.common.redis_routed import OneRedis, RoutedRedis

_READ: Final = Script("read_gauges", reads_only=True)


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


async def read_board(client: OneRedis | RoutedRedis, keys: LoadKeys) -> GaugeTexts:
    """Read a model's gauges. A replica's clock is another one: ask the master.

    Raises:
        IndexUnavailable: Redis did not answer in time, or refused.
    """
    now_ms, *found = await _READ.run(client, (keys.gauges,), ())
    names = (EndpointName(name.decode(errors="replace")) for name in found[::2])
    return GaugeTexts(int(now_ms), dict(zip(names, found[1::2], strict=True)))

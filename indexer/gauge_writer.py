"""Write what engines' gauges say into Redis, dated by its clock.

A sample's date is an estimate that is never too late: the clock as Redis told it with the last
write, from the moment when we had heard it. So a sample looks older than it is by the time that
an answer takes, and one that waited for a Redis that was frozen does not look new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import Sample, SharedSample
from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import RedisArg, Script, guard
from kvatlas.common.redis_routed import OneRedis, RoutedRedis

_WRITE: Final = Script("write_gauges")


class Seen(NamedTuple):
    """What was seen of an endpoint.

    Attributes:
        at_s: when, by our clock.
        every_s: until the next look.
    """

    sample: Sample
    at_s: float
    every_s: float


class GaugeWriter:
    """The gauges of one model in Redis, for writing.

    Every method raises IndexUnavailable when Redis does not answer in REDIS_WRITE_S, or refuses.

    Args:
        client: as for the store.
        keys: of the model.
    """

    def __init__(self, client: OneRedis | RoutedRedis, keys: LoadKeys) -> None:
        self._client = client
        self._keys = keys
        self._reader = GaugeReader(client, may_write=True)
        self._offset_ms: float | None = None
        """Redis' clock less ours, at most."""

    async def write(self, seen: Mapping[EndpointName, Seen]) -> None:
        """Write what was seen; nothing at all is a question whether Redis is there."""
        offset_ms = await self._run(()) if self._offset_ms is None else self._offset_ms
        items = iter(seen.items())
        while some := list(islice(items, limits.GAUGES_PER_WRITE_MAX)):
            args = [part for name, one in some for part in (name, _dated(one, offset_ms))]
            offset_ms = await self._run(args)

    async def forget(self, configured: Collection[EndpointName]) -> None:
        """Take out endpoints that are not configured, and that nobody has written for long."""
        found = await self._reader.read(self._keys)
        gone = [
            name
            for name, text in found.texts.items()
            if name not in configured and _age_ms(text, found.now_ms) > limits.GAUGES_FORGET_S * 1e3
        ]
        if gone:
            with guard():
                await self._client.hdel(self._keys.gauges, *gone)

    async def _run(self, args: Sequence[RedisArg]) -> float:
        # Known again when Redis has answered: behind the address may be another one by then.
        self._offset_ms = None
        with guard():
            async with asyncio.timeout(limits.REDIS_WRITE_S):
                now_ms = await _WRITE.run(
                    self._client, (self._keys.gauges,), (limits.GAUGES_KEPT_S, *args)
                )
        offset_ms = self._offset_ms = int(now_ms) - monotonic() * 1e3
        return offset_ms


def _dated(seen: Seen, offset_ms: float) -> str:
    at_ms = int(seen.at_s * 1e3 + offset_ms)
    return SharedSample(at_ms, int(seen.every_s * 1e3), seen.sample).to_text()


def _age_ms(text: bytes, now_ms: int) -> float:
    """Tell how old a text is; one that is none is older than any."""
    try:
        return now_ms - SharedSample.from_text(text.decode()).at_ms
    except ValueError:
        return float("inf")

"""Follow what indexers tell of engines' gauges, and know how old it is.

Ages are told by Redis' clock, of one reading: a sample's age when it was read. From there on they
are counted by our own clock. A sample from the future says that the clock has changed, and is not
believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.gauge_board import GaugeReader, GaugeTexts
from kvatlas.common.gauges import Sample, SharedSample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import connect
from kvatlas.common.redis_routed import OneRedis, RoutedRedis
from kvatlas.common.setting_sections import RedisSettings
from kvatlas.router.endpoint import Endpoint
from kvatlas.router.metrics import RouterMetrics

NEVER: Final = float("-inf")
FUTURE_MS_MAX: Final = 50
"""By which a sample may be ahead of the reading: both are rounded, and writers estimate."""

Take = Callable[[EndpointName, Sample, float], None]
"""Told of each new sample: the endpoint, what was found, and when by our clock."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The newest text of an endpoint, and until when it is believed."""

    text: bytes
    until_s: float


class ModelGauges:
    """The shared gauges of one model's endpoints.

    Args:
        reader: of what indexers tell.
        keys: of the model.
        take: told of new samples.
        metrics: told of readings that failed.
        bytes_per_s: says how much may be read; 0 while the model has no endpoint.
    """

    def __init__(
        self,
        reader: GaugeReader,
        keys: LoadKeys,
        take: Take,
        metrics: RouterMetrics,
        bytes_per_s: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._take = take
        self._metrics = metrics
        self._bytes_per_s = bytes_per_s
        self._known: dict[EndpointName, _Known] = {}
        self._read_s = NEVER
        self.begun = asyncio.Event()
        """Set after the first attempt to read."""

    def is_fresh(self, name: EndpointName, now_s: float) -> bool:
        """Tell whether an endpoint's sample is one that is believed: it answered, and lately."""
        known = self._known.get(name)
        return (
            known is not None
            and now_s <= known.until_s
            and now_s - self._read_s <= limits.GAUGES_STALE_S
        )

    async def run(self) -> None:
        """Read for ever. Without Redis nothing is fresh after GAUGES_STALE_S."""
        while True:
            rest_s = limits.GAUGES_READ_S
            if bytes_per_s := self._bytes_per_s():
                rest_s = max(rest_s, await self._read() / bytes_per_s)
            self.begun.set()
            await asyncio.sleep(min(rest_s, limits.GAUGES_READ_MAX_S))

    async def _read(self) -> int:
        """Read once; give how many bytes it was."""
        try:
            asked_s = monotonic()
            found = await self._reader.read(self._keys)
        except IndexUnavailable as error:
            self._metrics.gauge_errors.labels(error.reason).inc()
            return 0
        await self._note(found, asked_s)
        return found.size

    async def _note(self, found: GaugeTexts, asked_s: float) -> None:
        known: dict[EndpointName, _Known] = {}
        for number, (name, text) in enumerate(found.texts.items(), 1):
            before = self._known.get(name)
            if before is None or before.text != text:
                before = self._new(name, text, found.now_ms, asked_s)
            known[name] = before
            if number % limits.GAUGES_TURN == 0:
                await asyncio.sleep(0)
        self._known, self._read_s = known, asked_s

    def _new(self, name: EndpointName, text: bytes, now_ms: int, asked_s: float) -> _Known:
        try:
            shared = SharedSample.from_text(text.decode())
        except ValueError:
            return _Known(text, NEVER)
        age_ms = now_ms - shared.at_ms
        if age_ms < -FUTURE_MS_MAX or not shared.sample.is_up:
            return _Known(text, NEVER)
        at_s = asked_s - max(0, age_ms) / 1e3
        until_s = at_s + shared.every_ms / 1e3 + limits.GAUGES_STALE_S
        if asked_s <= until_s:
            self._take(name, shared.sample, at_s)
        return _Known(text, until_s)


class SharedGauges:
    """The shared gauges of all models."""

    def __init__(
        self, client: OneRedis | RoutedRedis, models: Mapping[ModelName, ModelGauges]
    ) -> None:
        self._client = client
        self._models = models

    @classmethod
    def connect(
        cls,
        redis: str | RedisSettings,
        models: Iterable[ModelName],
        has_endpoints: Callable[[ModelName], bool],
        take: Take,
        metrics: RouterMetrics,
    ) -> SharedGauges:
        """Make a reader with a connection of its own; nothing is sent yet.

        Args:
            redis: where the gauges are.
            models: that may have endpoints.
            has_endpoints: tells whether one has any.
            take: told of new samples.
            metrics: told of readings that failed.
        """
        # Never a replica: its clock is another one.
        client = connect(redis, timeout_s=limits.REDIS_WRITE_S, connections_max=None)
        read, reader = list(models), GaugeReader(client)
        share = limits.GAUGES_READ_BYTES_PER_S / max(1, len(read))

        def bytes_per_s(model: ModelName) -> float:
            return share if has_endpoints(model) else 0.0

        gauges = {
            m: ModelGauges(reader, LoadKeys(m), take, metrics, partial(bytes_per_s, m))
            for m in read
        }
        return cls(client, gauges)

    def is_fresh(self, endpoint: Endpoint, now_s: float) -> bool:
        """Tell whether an endpoint's shared sample is one that is believed."""
        return self._models[endpoint.model].is_fresh(endpoint.name, now_s)

    async def begun(self) -> None:
        """Wait until each model has been read once, or could not be."""
        for model in self._models.values():
            await model.begun.wait()

    async def run(self) -> None:
        """Read for ever."""
        async with asyncio.TaskGroup() as group:
            for model in self._models.values():
                group.create_task(model.run())

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

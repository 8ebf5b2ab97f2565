"""One place where endpoints are found, looked at for as long as somebody wants to know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from kvatlas.common import limits
from kvatlas.common.backoff import Backoff
from kvatlas.common.discovery.asking import Asking
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.merging import PlaceTold
from kvatlas.common.discovery.source import EndpointSource, SourceFailed, TellsFaults
from kvatlas.common.log import logger
from kvatlas.common.setting_sections import EndpointSettings

_LOG = logger("discovery")


class Place:
    """Keep what a source last told, whatever becomes of the source.

    Args:
        label: that names it in metrics and logs; who has made it may change it.
        source: to run.
        asking: asks its engines.
        gauges: told how it is.
        changed: called when it has told something new.
    """

    def __init__(
        self,
        label: str,
        source: EndpointSource,
        asking: Asking,
        gauges: SourceGauges,
        changed: Callable[[], None],
    ) -> None:
        self.label = label
        self._faults: Sequence[str] = ()
        self._source = source
        self._asking = asking
        self._gauges = gauges
        self._changed = changed
        self._endpoints: list[EndpointSettings] | None = None
        self._is_in_sync = False
        self._backoff = Backoff(
            limits.DISCOVERY_RETRY_S,
            limits.DISCOVERY_RETRY_MAX_S,
            limits.DISCOVERY_JITTER,
            random.Random().random,  # noqa: S311 - jitter
        )
        self.announce()

    @property
    def faults(self) -> Sequence[str]:
        """Say why it is not in sync, if it has failed, or what its source says of itself."""
        if not self._faults and isinstance(self._source, TellsFaults):
            return self._source.faults
        return self._faults

    @property
    def told(self) -> PlaceTold:
        """Give what it has told."""
        asking = self._asking
        return PlaceTold(self._endpoints, asking.told, asking.asks_events)

    def want(self, models: frozenset[str]) -> None:
        """Say which models there are."""
        self._asking.models = models
        self._asking.follow(self._endpoints or ())

    def announce(self) -> None:
        """Tell the gauges how it is."""
        count = len(self._endpoints or ())
        self._gauges.tell(self.label, endpoints=count, is_in_sync=self._is_in_sync)

    async def run(self) -> None:
        """Run the source for ever; after a failure again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._asking.run())
            while True:
                await self._run_once()
                await asyncio.sleep(self._backoff.pause_s())

    async def _run_once(self) -> None:
        faults: Sequence[str]
        try:
            await self._source.run(self._tell)
            faults = ["it has ended"]
        except SourceFailed as error:
            faults = error.faults
        except Exception as error:  # noqa: BLE001 - a place in disorder must not stop the fleet
            faults = [type(error).__name__]
        self._faults, self._is_in_sync = faults, False
        self._gauges.failed(self.label)
        self.announce()
        _LOG.warning("source.failed", source=self.label, faults=list(faults))

    def _tell(self, endpoints: Sequence[EndpointSettings]) -> None:
        self._backoff.reset()
        before = {each.url: each for each in self._endpoints or ()}
        # Objects that stay the same need not be looked at by those who are told.
        told = [known if (known := before.get(e.url)) == e else e for e in endpoints]
        is_news = self._endpoints is None or told != self._endpoints
        was_in_sync, self._is_in_sync, self._faults = self._is_in_sync, True, ()
        self._endpoints = told
        self.announce()
        if not was_in_sync:
            _LOG.info("source.in_sync", source=self.label, endpoints=len(told))
        if is_news:
            self._asking.follow(told)
            self._changed()

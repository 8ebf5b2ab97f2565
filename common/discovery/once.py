"""Look at all places once, for commands that do not stay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from kvatlas.common import limits
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.merging import Fleet, PlaceFound
from kvatlas.common.discovery.watching import Watching
from kvatlas.common.log import no_logs
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.common.tls_engines import EngineIdentities


async def look_once(
    settings: Settings, identities: EngineIdentities
) -> tuple[Fleet, Sequence[PlaceFound]]:
    """Find out who is there, in DISCOVERY_ONCE_S at most.

    Raises:
        ConfigError: a place cannot be looked at.
    """
    if not settings.discovery:
        return Fleet(settings.endpoints), []
    is_whole = asyncio.Event()

    def take(fleet: Fleet) -> None:
        if fleet.is_known and not fleet.awaited:
            is_whole.set()

    with no_logs():
        async with Supervisor() as tasks:
            watching = Watching(tasks, SourceGauges())
            with watching.following(settings, identities.of, take) as following:
                with suppress(TimeoutError):
                    async with asyncio.timeout(limits.DISCOVERY_ONCE_S):
                        await is_whole.wait()
                places = [
                    PlaceFound(
                        place.label,
                        None if place.told.endpoints is None else len(place.told.endpoints),
                        place.faults,
                    )
                    for place in following.places
                ]
                return following.fleet, places

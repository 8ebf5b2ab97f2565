"""Follow all places that a configuration names, for everybody in the process who wants to know.

A place that several followers name is looked at once, and one that comes later starts with what
is known already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from kvatlas.common import limits
from kvatlas.common.discovery.asking import Asking
from kvatlas.common.discovery.found import label_of
from kvatlas.common.discovery.gauges import SourceGauges
from kvatlas.common.discovery.merging import Fleet, Merger, Reason
from kvatlas.common.discovery.place import Place
from kvatlas.common.discovery.sources import source_of
from kvatlas.common.discovery_settings import AnyDiscovery
from kvatlas.common.log import logger
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.common.tls_engines import PLAIN, EngineTls

_LOG = logger("discovery")
_SAID: Final[tuple[Reason, ...]] = ("other_model", "repeated", "over_limit")
NAMES_SAID_MAX: Final = 16

Take = Callable[[Fleet], None]
TlsOf = Callable[[str], EngineTls]


@dataclass(slots=True, eq=False)
class _Looked:
    """A place, and the task that looks at it."""

    place: Place
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class Following:
    """Somebody who wants to know who is there.

    Attributes:
        fleet: as it was told last.
    """

    settings: Settings
    tls_of: TlsOf
    take: Take
    merger: Merger
    places: list[Place]
    fleet: Fleet
    said: dict[Reason, frozenset[str]] = field(default_factory=dict)


class Watching:
    """The places of a process.

    Args:
        tasks: in which they are looked at; nothing runs where no place is configured.
        gauges: told how they are.
    """

    def __init__(self, tasks: Supervisor, gauges: SourceGauges) -> None:
        self._tasks = tasks
        self._gauges = gauges
        self._looked: dict[str, _Looked] = {}
        self._followings: list[Following] = []
        self._changed = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    @contextmanager
    def following(self, settings: Settings, tls_of: TlsOf, take: Take) -> Iterator[Following]:
        """Follow what a configuration names, until the context ends.

        Args:
            settings: the configuration.
            tls_of: tells how an engine is spoken to, by URL.
            take: told of each change, and at once where something is known. Never called where
                the configuration names no place.
        """
        entries = settings.discovery
        merger = Merger(settings.endpoints, [model.name for model in settings.models])
        fleet = Fleet(settings.endpoints, is_known=not entries)
        following = Following(settings, tls_of, take, merger, [], fleet)
        self._followings.append(following)
        try:
            for position, entry in enumerate(entries):
                following.places.append(self._place(following, label_of(position, entry), entry))
            self._share_models()
            if any(place.told.endpoints is not None for place in following.places):
                self._tell(following)
            yield following
        finally:
            self._followings.remove(following)
            self._drop_unwanted()
            self._share_models()

    def _place(self, following: Following, label: str, entry: AnyDiscovery) -> Place:
        kubernetes = following.settings.kubernetes
        key = f"{entry.model_dump_json()} {kubernetes.model_dump_json()}"
        known = self._looked.get(key)
        if known is None:
            place: Place
            asking = Asking(
                lambda url: self._tls_of(place, url),
                self._changed.set,
                asks_events=entry.events_port == "ask",
            )
            source = source_of(entry, kubernetes, self._gauges.metrics)
            place = Place(label, source, asking, self._gauges, self._changed.set)
            task = self._tasks.start(place.run(), f"discovery {label}")
            known = self._looked[key] = _Looked(place, task)
        elif known.place not in following.places:
            before, known.place.label = known.place.label, label
            self._name_anew(before)
            known.place.announce()
        if self._telling is None:
            self._telling = self._tasks.start(self._tell_all(), "discovery")
        return known.place

    def _tls_of(self, place: Place, url: str) -> EngineTls:
        """Tell how an engine of a place is spoken to: as the newest that follow it say."""
        for following in reversed(self._followings):
            if place in following.places:
                return following.tls_of(url)
        return PLAIN

    def _share_models(self) -> None:
        for looked in self._looked.values():
            names = [
                model.name
                for each in self._followings
                if looked.place in each.places
                for model in each.settings.models
            ]
            looked.place.want(frozenset(names))

    def _drop_unwanted(self) -> None:
        wanted = {place for each in self._followings for place in each.places}
        for key, looked in list(self._looked.items()):
            if looked.place not in wanted:
                del self._looked[key]
                looked.task.cancel()
                self._name_anew(looked.place.label)

    def _name_anew(self, label: str) -> None:
        """Let gauges tell nothing more under a name, but of whom else has it."""
        self._gauges.forget(label)
        for looked in self._looked.values():
            if looked.place.label == label:
                looked.place.announce()

    async def _tell_all(self) -> None:
        """Tell everybody of changes, for ever."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(limits.DISCOVERY_GATHER_S)
            self._changed.clear()
            for following in list(self._followings):
                if following.places:
                    self._tell(following)

    def _tell(self, following: Following) -> None:
        fleet = following.merger.merge(place.told for place in following.places)
        if fleet == following.fleet:
            return
        _say_left_out(fleet.left_out, following.said)
        following.said = dict(fleet.left_out)
        self._gauges.merged(fleet)
        following.fleet = fleet
        following.take(fleet)


def _say_left_out(
    left_out: Mapping[Reason, frozenset[str]], said: Mapping[Reason, frozenset[str]]
) -> None:
    """Log whom nobody can use, once each time that they turn up."""
    for reason in _SAID:
        news = sorted(left_out[reason] - said.get(reason, frozenset()))
        if news:
            _LOG.warning(
                "endpoints.left_out",
                reason=reason,
                count=len(news),
                endpoints=news[:NAMES_SAID_MAX],
            )

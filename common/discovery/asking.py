"""Ask engines that were found for what nothing else says of them: their model, and their events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp

from kvatlas.common import limits
from kvatlas.common.backoff import Backoff
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery.answers import (
    EventSources,
    read_event_sources,
    read_model_names,
)
from kvatlas.common.discovery.merging import EngineTold
from kvatlas.common.engine_client import Asked, Silence, ask, engine_session
from kvatlas.common.errors import ConfigError
from kvatlas.common.key_file import read_key
from kvatlas.common.log import logger
from kvatlas.common.setting_sections import EndpointSettings
from kvatlas.common.tls_engines import EngineTls

_LOG = logger("discovery")
TICK_S: Final = 0.1
NO_EVENTS: Final[EventSources] = {}


@dataclass(slots=True, eq=False)
class _Course:
    """How far the questions to one engine are.

    Attributes:
        due_s: when it is asked next.
        is_under_way: whether it is being asked.
        is_without: whether it was said that it has no events.
    """

    endpoint: EndpointSettings
    backoff: Backoff
    due_s: float = 0.0
    is_under_way: bool = False
    is_without: bool = False


class Asking:
    """Ask the engines of one place, until they have answered and now and then after that.

    Args:
        asks_events: whether they are asked where their events are; else only for their models.
        tls_of: tells how an engine is spoken to.
        changed: called when an engine has told something new.

    Attributes:
        told: what engines have told, by URL; an entry never changes, another one takes its place.
        models: names that an engine's model must be one of; they are asked for it where there is
            a choice.
    """

    def __init__(
        self, tls_of: Callable[[str], EngineTls], changed: Callable[[], None], *, asks_events: bool
    ) -> None:
        self._tls_of = tls_of
        self._changed = changed
        self.asks_events = asks_events
        self.told: Mapping[str, EngineTold] = {}
        self.models: frozenset[str] = frozenset()
        self._courses: dict[str, _Course] = {}
        self._wake = asyncio.Event()
        self._chance = random.Random()  # noqa: S311 - jitter

    def follow(self, endpoints: Iterable[EndpointSettings]) -> None:
        """Say whom to ask; what others have told is forgotten."""
        before, self._courses = self._courses, {}
        for endpoint in endpoints:
            if not self._questions(endpoint):
                continue
            known = before.get(endpoint.url)
            if known is None:
                known = _Course(endpoint, self._backoff())
            known.endpoint = endpoint
            self._courses.setdefault(endpoint.url, known)
        self.told = {url: told for url, told in self.told.items() if url in self._courses}
        self._wake.set()

    async def run(self) -> None:
        """Ask for ever."""
        async with engine_session(limits.CONNECT_S) as session, asyncio.TaskGroup() as group:
            slots = asyncio.Semaphore(limits.DISCOVERY_ASKS_AT_ONCE_MAX)
            while True:
                self._wake.clear()
                now_s = monotonic()
                for course in self._courses.values():
                    if course.due_s <= now_s and not course.is_under_way:
                        course.is_under_way = True
                        group.create_task(self._ask(session, slots, course))
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S if self._courses else None):
                        await self._wake.wait()

    def _backoff(self) -> Backoff:
        return Backoff(
            limits.DISCOVERY_RETRY_S,
            limits.DISCOVERY_ASK_MAX_S,
            limits.DISCOVERY_JITTER,
            self._chance.random,
        )

    def _questions(self, endpoint: EndpointSettings) -> Sequence[str]:
        """List what is not known of an engine."""
        asks_model = not endpoint.model and len(self.models) > 1
        asks_events = self.asks_events and endpoint.events is None
        return [
            *(["/v1/models"] if asks_model else []),
            *(["/kv_event_sources"] if asks_events else []),
        ]

    async def _ask(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, course: _Course
    ) -> None:
        endpoint = course.endpoint
        try:
            async with slots:
                found, is_whole = await self._answers(session, course)
        finally:
            course.is_under_way = False
        if self._courses.get(endpoint.url) is not course:
            return
        if is_whole:
            course.backoff.reset()
            pause_s = limits.DISCOVERY_REFRESH_S * self._chance.uniform(0.9, 1.1)
        else:
            pause_s = course.backoff.pause_s()
        course.due_s = monotonic() + pause_s
        if found != self.told.get(endpoint.url, EngineTold()):
            self.told = {**self.told, endpoint.url: found}
            self._changed()

    async def _answers(
        self, session: aiohttp.ClientSession, course: _Course
    ) -> tuple[EngineTold, bool]:
        """Ask all there is to ask; say whether all of it was answered, and can be used."""
        endpoint = course.endpoint
        before = self.told.get(endpoint.url, EngineTold())
        models, sources, is_whole = before.models, before.sources, True
        with suppress(ConfigError):
            key = read_key(endpoint.api_key_file, "discovery")
            asked = Asked(endpoint.url, key, tls=self._tls_of(endpoint.url))
            for path in self._questions(endpoint):
                status, content = await _get(session, asked, path)
                if path == "/v1/models":
                    names = read_model_names(content) if status == HTTPStatus.OK else None
                    models = models if names is None else names
                    is_whole &= names is not None and not self.models.isdisjoint(names)
                else:
                    heard = self._sources(course, status, content)
                    sources = sources if heard is None else heard
                    is_whole &= heard is not None
            return EngineTold(models, sources), is_whole
        return before, False

    def _sources(self, course: _Course, status: int, content: bytes) -> EventSources | None:
        if status == HTTPStatus.OK:
            return read_event_sources(content)
        if status != HTTPStatus.NOT_FOUND:
            return None
        if not course.is_without:
            course.is_without = True
            _LOG.warning("endpoint.tells_no_events", endpoint=course.endpoint.host_port)
        return NO_EVENTS


async def _get(session: aiohttp.ClientSession, asked: Asked, path: str) -> tuple[int, bytes]:
    """Ask; status 0 stands for no answer."""
    try:
        reply = await ask(session, asked, path)
    except Silence:
        return 0, b""
    return reply.status, reply.content

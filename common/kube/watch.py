"""Follow the objects of a selection: list them, then watch them, for ever.

The API server may be away, refuse, tear the watch or forget its versions: what was last known
stays, and it is asked again, ever more seldom while it fails. Only what was listed whole replaces
what is known. A resource type that is not installed has no objects.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.discovery_settings import KubernetesSettings
from kvatlas.common.errors import KubernetesUnavailable
from kvatlas.common.kube.client import KubeClient
from kvatlas.common.kube.counts import KubeMetrics
from kvatlas.common.kube.lines import Lines
from kvatlas.common.kube.objects import Objects, Read
from kvatlas.common.kube.pauses import Chance, Pauses
from kvatlas.common.kube.resources import Selection
from kvatlas.common.log import logger

_LOG = logger("kubernetes")

T = TypeVar("T")
_LISTED_ANEW: Final = frozenset({"expired", "malformed", "too_large"})
"""Failures after which a watch cannot go on from where it was."""


@dataclass(frozen=True, slots=True)
class Api:
    """How the API server is asked.

    Attributes:
        client: of it.
        metrics: told of all watches.
        resync_s: after which everything is listed anew.
        chance: to draw with, so that not all of us ask at once.
    """

    client: KubeClient
    metrics: KubeMetrics
    resync_s: float
    chance: Chance


def api_of(settings: KubernetesSettings, metrics: KubeMetrics) -> Api:
    """Make what is asked with, as the configuration says."""
    chance = random.Random().random  # noqa: S311 - jitter
    return Api(KubeClient.of(settings), metrics, settings.resync_s, chance)


class Watch(Generic[T]):
    """Know the objects of a selection.

    Args:
        api: how.
        selection: which ones.
        read: makes of each what is kept; pure.
        told: called when they are first known, and with each change; what several events change
            that came together is told once.

    Attributes:
        objects: what is known.
        is_known: they have been listed once, or their type is not installed.
        fault: why they are not followed at the moment; None while they are.
    """

    def __init__(
        self,
        api: Api,
        selection: Selection,
        read: Read[T],
        told: Callable[[], None],
    ) -> None:
        self.objects: Objects[T] = Objects(read, limits.KUBE_OBJECTS_MAX)
        self.is_known = False
        self.fault: str | None = None
        self._client, self._metrics = api.client, api.metrics
        self._resync_s, self._chance = api.resync_s, api.chance
        self._selection = selection
        self._told = told
        self._pauses = Pauses(api.chance)
        self._list_due_s = -math.inf
        self._absent_s: float | None = None
        self._failed_for: str | None = None
        self._heard_s = monotonic()

    async def run(self) -> None:
        """Follow them, for ever."""
        name = self._selection.watch

        def silent_s() -> float:
            return monotonic() - self._heard_s

        self._metrics.kube_silent.labels(name).set_function(silent_s)
        try:
            while True:
                try:
                    await self._round()
                except KubernetesUnavailable as error:
                    await asyncio.sleep(self._failed(error))
        finally:
            # After a change of the configuration another watch may have the name.
            if self._metrics.kube_silent.labels(name).asks(silent_s):
                self._metrics.kube_silent.remove(name)
                self._metrics.kube_good.remove(name)
                self._metrics.kube_objects.remove(name)

    # --- what is asked --------------------------------------------------------------------------

    async def _round(self) -> None:
        """List where that is due, and watch until the watch ends."""
        if self.objects.version is None or monotonic() >= self._list_due_s:
            await self._list()
        version, begun_s = self.objects.version or "", monotonic()
        try:
            await self._watch(version)
        finally:
            lasted_s = monotonic() - begun_s
            is_new = self.objects.version not in (None, version)
            if is_new or lasted_s >= limits.KUBE_WATCH_SHORT_S:
                self._pauses.went_on()
        if not is_new and lasted_s < limits.KUBE_WATCH_SHORT_S:
            raise KubernetesUnavailable("short")

    async def _list(self) -> None:
        # One that fails is tried again soon, but the watch that went well before goes on first.
        self._list_due_s = monotonic() + limits.KUBE_PAUSE_MAX_S
        self.objects.begin()
        continued = None
        while True:
            continued = self._add(await self._client.page(self._selection, continued))
            if continued is None:
                break
        self._list_due_s = monotonic() + self._resync_s * (0.9 + 0.2 * self._chance())
        is_other = self.objects.end()
        self._metrics.kube_lists.labels(self._selection.watch).inc()
        self._heard()
        self._tell(is_other=is_other)

    def _add(self, page: bytes) -> str | None:
        with_faults = self.objects.malformed, self.objects.left_out
        continued = self.objects.add(page)
        self._count_ignored(*with_faults)
        return continued

    async def _watch(self, version: str) -> None:
        asked_s = limits.KUBE_WATCH_S * (0.75 + 0.5 * self._chance())
        asked_s = max(1.0, min(asked_s, self._list_due_s - monotonic()))
        lines = Lines(limits.KUBE_LINE_BYTES_MAX)
        async with self._client.watch(self._selection, version, math.ceil(asked_s)) as pieces:
            self._heard()
            async for piece in pieces:
                self._apply(lines.add(piece))

    def _apply(self, lines: list[bytes]) -> None:
        """Take events that came together, and tell what they changed."""
        is_other, counted = False, self._metrics.kube_events.labels(self._selection.watch)
        with_faults = self.objects.malformed, self.objects.left_out
        try:
            for line in lines:
                counted.inc()
                is_other |= self.objects.apply(line)
        finally:
            self._count_ignored(*with_faults)
            self._tell(is_other=is_other)
        self._heard()

    # --- what is told ---------------------------------------------------------------------------

    def _tell(self, *, is_other: bool) -> None:
        self._metrics.kube_objects.labels(self._selection.watch).set(len(self.objects.by_name))
        if is_other or not self.is_known:
            self.is_known = True
            self._told()

    def _heard(self) -> None:
        self._heard_s = monotonic()
        self._absent_s = self.fault = None
        self._metrics.kube_good.labels(self._selection.watch).set(1)
        if self._failed_for is not None:
            _LOG.info("kubernetes.recovered", watch=self._selection.watch, was=self._failed_for)
            self._failed_for = None

    def _failed(self, error: KubernetesUnavailable) -> float:
        """Note a failure; give the seconds to wait."""
        if error.reason in _LISTED_ANEW:
            self.objects.version = None
        self._metrics.kube_failures.labels(self._selection.watch, error.reason).inc()
        pause_s = self._pauses.after(error)
        if error.reason in ("expired", "short"):
            return pause_s
        if error.reason == "absent":
            pause_s = self._absent(pause_s)
        is_good = error.reason == "absent" and self.is_known
        self.fault = None if is_good else self._fault_of(error)
        self._metrics.kube_good.labels(self._selection.watch).set(is_good)
        if error.reason != self._failed_for:
            self._failed_for = error.reason
            self._say(error)
        return pause_s

    def _absent(self, pause_s: float) -> float:
        """Know, once it is sure, that there are no objects of a type; give how long to wait."""
        self._absent_s = self._absent_s or monotonic()
        lasted_s = monotonic() - self._absent_s
        if self.objects.by_name and lasted_s < limits.KUBE_ABSENT_SURE_S:
            return limits.KUBE_ABSENT_SURE_S - lasted_s
        self._heard_s = monotonic()
        self._tell(is_other=self.objects.clear())
        return pause_s

    def _say(self, error: KubernetesUnavailable) -> None:
        said = {"watch": self._selection.watch, "reason": error.reason, "message": error.message}
        if error.reason == "forbidden":
            _LOG.error("kubernetes.denied", **said, needs_rule=self._selection.resource.rule())
        elif error.reason == "unauthorized":
            _LOG.error("kubernetes.denied", **said)
        elif error.reason == "absent":
            _LOG.info("kubernetes.type_absent", **said)
        else:
            _LOG.warning("kubernetes.failed", **said)

    def _fault_of(self, error: KubernetesUnavailable) -> str:
        told = f"{self._selection.watch}: {error}"
        if error.reason != "forbidden":
            return told
        return f"{told}; a Role needs {self._selection.resource.rule()}"

    def _count_ignored(self, malformed: int, left_out: int) -> None:
        """Count what was ignored beyond these numbers."""
        name, ignored = self._selection.watch, self._metrics.kube_ignored
        if (more := self.objects.malformed - malformed) > 0:
            ignored.labels(name, "malformed").inc(more)
            _LOG.warning("kubernetes.objects_ignored", watch=name, reason="malformed", objects=more)
        if (more := self.objects.left_out - left_out) > 0:
            ignored.labels(name, "too_many").inc(more)
            _LOG.warning("kubernetes.objects_ignored", watch=name, reason="too_many", objects=more)

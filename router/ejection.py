"""Who is left out for failing, for how long, and when nobody may be. Pure.

There are two ways to be out. *Away*: nothing of it answers, neither requests' connections nor our
looks; it is back with its next answer, and any number may be away, for they would not serve.
*Ejected*: it answers, but fails too many requests. That is a judgement, which may be wrong or the
clients' doing, so it ends by itself, takes half of a pool at most, and does not count at all
(panic) while too few are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from kvatlas.common import limits

Reason = Literal["unreachable", "failures", "share"]
"""Away; so many failures one after the other; such a share of the latest requests."""

_LATEST: Final = (1 << limits.OUTCOMES_KEPT) - 1


@dataclass(frozen=True, slots=True)
class Rules:
    """When to eject, and for how long.

    Attributes:
        failures: one after the other that eject.
        share: of the latest requests that failed, from which on they eject.
        requests_min: of which there must be so many.
        pause_s: of the first ejection; the n-th takes n times as long.
        pause_max_s: the longest.
        ejected_max: share of a pool that may be out when another is ejected, that one included.
        panic: share of a pool that must be in for ejections to count.
    """

    failures: int = limits.EJECTION_FAILURES
    share: float = limits.EJECTION_SHARE
    requests_min: int = limits.EJECTION_REQUESTS_MIN
    pause_s: float = limits.EJECTION_S
    pause_max_s: float = limits.EJECTION_MAX_S
    ejected_max: float = limits.EJECTED_SHARE_MAX
    panic: float = limits.PANIC_SHARE


@dataclass(slots=True, eq=False)
class Standing:
    """How one endpoint stands in its pool.

    Attributes:
        takes: whether requests should go there; the pool writes it.
        unanswered: looks and connections without an answer since the last answer.
        failures: requests that failed since the last that did not.
        outcomes: of the latest requests, a bit each, 1 for a failure.
        noted: how many bits count.
        is_ejected: whether it is out for failing.
        until_s: when it may return.
        ejections: that its next pause is counted by.
        returned_s: when it came back last.
    """

    takes: bool = True
    unanswered: int = 0
    failures: int = 0
    outcomes: int = 0
    noted: int = 0
    is_ejected: bool = False
    until_s: float = 0.0
    ejections: int = 0
    returned_s: float = 0.0

    @property
    def is_away(self) -> bool:
        """Tell whether nothing of it has answered for a while."""
        return self.unanswered >= limits.UNANSWERED_MAX

    @property
    def is_out(self) -> bool:
        """Tell whether it is away or ejected."""
        return self.is_ejected or self.is_away

    def succeeded(self) -> None:
        """Note a request that was answered well."""
        self.failures = 0
        self.outcomes = (self.outcomes << 1) & _LATEST
        self.noted += 1


class Pool:
    """Endpoints that can stand in for one another.

    Args:
        rules: of ejection.
        draw: gives a number in [0, 1): that routers do not try again in step.

    Attributes:
        is_panicking: whether ejections do not count, since too few are left.
    """

    def __init__(self, rules: Rules, draw: Callable[[], float]) -> None:
        self._rules = rules
        self._draw = draw
        self._all: list[Standing] = []
        self.is_panicking = False

    def join(self, standing: Standing) -> None:
        """Take in an endpoint."""
        self._all.append(standing)

    def leave(self, standing: Standing) -> None:
        """Leave out an endpoint that is gone for good; no request should go there any more."""
        self._all.remove(standing)
        standing.takes = False

    def weigh(self) -> None:
        """Decide anew who takes requests, when endpoints have joined or left. Cost: 1 us for 30."""
        there = sum(not each.is_out for each in self._all)
        self.is_panicking = there < self._rules.panic * len(self._all)
        for each in self._all:
            each.takes = not each.is_away and (self.is_panicking or not each.is_ejected)

    @property
    def is_all_away(self) -> bool:
        """Tell whether there are endpoints and nobody of them answers. Cost: 1 us for 30."""
        return bool(self._all) and all(each.is_away for each in self._all)

    def unanswered(self, standing: Standing) -> Reason | None:
        """Note a connection or a look without an answer; say why it is out from here on."""
        standing.unanswered += 1
        if standing.unanswered != limits.UNANSWERED_MAX:
            return None
        self.weigh()
        return "unreachable"

    def failed(self, standing: Standing, now_s: float) -> Reason | None:
        """Note a request that failed; say why the endpoint is out from here on."""
        standing.failures += 1
        standing.outcomes = (standing.outcomes << 1 | 1) & _LATEST
        standing.noted += 1
        reason = None if standing.is_ejected else self._fault(standing)
        if reason is None or not self._has_room(standing):
            return None
        self._eject(standing, now_s)
        return reason

    def answered(self, standing: Standing, now_s: float, *, is_new: bool = False) -> bool:
        """Note an answer to a connection or a look; say whether it is back with it.

        Args:
            standing: of who answered.
            now_s: the moment.
            is_new: it is another process than the one that failed.
        """
        was_out = standing.is_out
        standing.unanswered = 0
        if standing.is_ejected and (is_new or now_s >= standing.until_s):
            standing.is_ejected = False
            standing.returned_s = now_s
            # What it failed at before counts no more.
            standing.failures = standing.outcomes = standing.noted = 0
        if was_out:
            self.weigh()
        return was_out and not standing.is_out

    def _fault(self, standing: Standing) -> Reason | None:
        rules = self._rules
        if standing.failures >= rules.failures:
            return "failures"
        noted = min(standing.noted, limits.OUTCOMES_KEPT)
        if noted >= rules.requests_min and standing.outcomes.bit_count() >= rules.share * noted:
            return "share"
        return None

    def _has_room(self, standing: Standing) -> bool:
        out = sum(each.is_out for each in self._all if each is not standing)
        return out + 1 <= self._rules.ejected_max * len(self._all)

    def _eject(self, standing: Standing, now_s: float) -> None:
        rules = self._rules
        # What lies back as long as pauses last counts less and less.
        well = int((now_s - standing.returned_s) // rules.pause_s)
        standing.ejections = max(0, standing.ejections - well) + 1
        pause_s = min(rules.pause_s * standing.ejections, rules.pause_max_s)
        standing.until_s = now_s + pause_s * (1 - limits.EJECTION_JITTER * self._draw())
        standing.is_ejected = True
        self.weigh()

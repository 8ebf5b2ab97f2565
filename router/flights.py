"""The board: every request that any router of ours has under way, and what follows from it. Pure.

A flight is launched when a router has decided, begins with the engine's first byte, and ends. While
it awaits its first byte, its uncached prompt tokens stand in the endpoint's queue, and its sketch
says what the endpoint will soon have cached. Own flights and those that other routers tell of
(`flight_log`) are treated alike.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import NamedTuple, NewType

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.router.predictions import Predictions, Sketch
from kvatlas.router.prefill_speed import Lessons, PrefillSpeed, SpeedOfOne

RouterId = NewType("RouterId", str)
"""One router process; drawn anew at every start."""


@dataclass(slots=True, eq=False)
class Flight:
    """One request that awaits its first byte.

    Attributes:
        tokens: of its prompt, that the endpoint must compute.
        is_silent: its first byte says nothing about its prompt, since the answer comes as a whole.
        due_s: when its prompt should be done, by the clock of the board's owner.
    """

    endpoint: EndpointName
    tokens: int
    launched_s: float
    sketch: Sketch | None = None
    is_silent: bool = False
    due_s: float = 0.0
    is_queued: bool = True


class Launch(NamedTuple):
    """What is told of a flight when it is launched.

    Attributes:
        number: that its router gives it.
        tokens: uncached tokens of its prompt.
        session: digest of the conversation that it belongs to, or None.
    """

    number: int
    endpoint: EndpointName
    tokens: int
    is_silent: bool = False
    sketch: Sketch | None = None
    session: int | None = None


@dataclass(slots=True)
class Crowd:
    """How many requests await their first byte at all endpoints together, smoothed over time.

    Attributes:
        count: at this moment.
    """

    count: int = 0
    _level: float = 0.0
    _at_s: float = 0.0

    def level(self, now_s: float) -> float:
        """Give the smoothed count."""
        if now_s > self._at_s:
            kept = exp((self._at_s - now_s) / limits.PRESSURE_S)
            self._level = self._level * kept + self.count * (1.0 - kept)
            self._at_s = now_s
        return self._level


@dataclass(slots=True, eq=False)
class Stand:
    """How an endpoint stands with all routers together.

    Attributes:
        requests: under way there.
        awaiting: those in the queue: their prompts are not known to be computed.
        tokens: that they have to be computed, in all.
        own_requests: those of this router.
        progressed_s: when a prompt was last done, or the queue began.
        speed: how fast it prefills.
        crowd: of the whole fleet; told of who comes and goes here.
        lessons: first bytes that its speed is still to be learned from.
        first: of the queue.
        copies: routers that are taken to do as this one does, while nothing is heard of them.
    """

    speed: SpeedOfOne
    lessons: Lessons
    crowd: Crowd
    requests: int = 0
    awaiting: int = 0
    tokens: int = 0
    own_requests: int = 0
    progressed_s: float = 0.0
    copies: int = 1
    first: Flight | None = None
    queue: dict[tuple[RouterId, int], Flight] = field(default_factory=dict)

    def wait_s(self, now_s: float) -> float:
        """Estimate how long a prompt would wait there until its turn.

        What has been computed of the first in the queue is not known, but how long the engine has
        been at it: no more than the first can be done by then.
        """
        first = self.first
        if first is not None and first.is_silent:
            self._settle(now_s)
            first = self.first
        if first is None:
            return 0.0
        speed = self.speed.line
        base_s, token_s = speed.base_s, speed.token_s
        first_s = base_s + first.tokens * token_s
        # Told late, the end of one before it may be older than its launch.
        since_s = self.progressed_s
        if since_s < first.launched_s:  # noqa: PLR1730 - max() takes three times as long
            since_s = first.launched_s
        done_s = now_s - since_s
        if done_s > first_s:
            done_s = first_s
        elif done_s < 0.0:
            done_s = 0.0
        return self.copies * (self.awaiting * base_s + self.tokens * token_s - done_s)

    def add(self, key: tuple[RouterId, int], flight: Flight) -> None:
        """Queue a flight."""
        wait_s = self.wait_s(flight.launched_s)
        if self.first is None:
            self.first = flight
            self.progressed_s = flight.launched_s
        speed = self.speed.line
        flight.due_s = flight.launched_s + wait_s + speed.base_s + flight.tokens * speed.token_s
        self.queue[key] = flight
        self.crowd.level(flight.launched_s)
        self.crowd.count += 1
        self.awaiting += 1
        self.tokens += flight.tokens

    def take(self, key: tuple[RouterId, int], flight: Flight) -> None:
        """Take a flight out of the queue, if it is still in it."""
        if flight.is_queued:
            flight.is_queued = False
            del self.queue[key]
            if flight is self.first:
                self.first = next(iter(self.queue.values()), None)
            self.crowd.count -= 1
            self.awaiting -= 1
            self.tokens -= flight.tokens

    def began(self, key: tuple[RouterId, int], flight: Flight, now_s: float) -> None:
        """Note a flight's first byte."""
        self._settle(now_s)
        self.crowd.level(now_s)
        if flight.is_queued and not flight.is_silent:
            self.lessons.note(now_s, flight.launched_s, flight.tokens)
            self.progressed_s = max(self.progressed_s, now_s)
        self.take(key, flight)

    def _settle(self, now_s: float) -> None:
        """Let those pass whose first byte says nothing, once their prompts should be done."""
        while (first := self.first) is not None and first.is_silent and first.due_s <= now_s:
            self.take(next(iter(self.queue)), first)
            self.lessons.note(first.due_s, first.launched_s, -1)
            self.progressed_s = max(self.progressed_s, first.due_s)


@dataclass(slots=True)
class _Router:
    """What is known of one router.

    Attributes:
        heard_s: when it last gave a sign, by Redis' clock.
        running: flights whose prompts are computed, by endpoint.
    """

    heard_s: float
    awaiting: dict[int, Flight] = field(default_factory=dict)
    running: Counter[EndpointName] = field(default_factory=Counter)


class Board:
    """All flights of all routers with one model's endpoints.

    Args:
        me: the router that keeps it.
        prior_tokens_per_s: how fast endpoints are believed to prefill at first.
        prior_base_s: alike, what a request takes beside its tokens.
    """

    def __init__(
        self, me: RouterId, prior_tokens_per_s: float, prior_base_s: float = 0.005
    ) -> None:
        self.me = me
        self._prior = (prior_tokens_per_s, prior_base_s)
        self._fleet_speed = PrefillSpeed(*self._prior)
        self._crowd = Crowd()
        self._copies = 1
        self._stands: dict[EndpointName, Stand] = {}
        self._known: set[EndpointName] = set()
        self._routers: dict[RouterId, _Router] = {me: _Router(0.0)}
        self._unlearned: dict[EndpointName, Stand] = {}
        self._predictions = Predictions()
        self._sessions: OrderedDict[int, EndpointName] = OrderedDict()

    @property
    def routers(self) -> int:
        """Count the routers that are known to live, this one among them."""
        return len(self._routers)

    def join(self, endpoint: EndpointName) -> Stand:
        """Keep how an endpoint stands from here on.

        Others may have told of flights there before we knew of it, or have some left of a life
        before this one: the engine at that address has them to compute in any case.
        """
        self._known.add(endpoint)
        return self.stand(endpoint)

    def leave(self, endpoint: EndpointName) -> None:
        """Keep it only for as long as something is under way there."""
        self._known.discard(endpoint)

    def tidy(self) -> None:
        """Drop the stands of endpoints that nobody here knows and where nothing is under way."""
        for name in self._stands.keys() - self._known - self._unlearned.keys():
            if not self._stands[name].requests:
                del self._stands[name]

    def stand(self, endpoint: EndpointName) -> Stand:
        """Give how an endpoint stands; the same object each time, while it is kept."""
        stand = self._stands.get(endpoint)
        if stand is None:
            speed = SpeedOfOne(self._fleet_speed, PrefillSpeed(*self._prior))
            stand = Stand(speed, Lessons(speed), self._crowd, copies=self._copies)
            self._stands[endpoint] = stand
        return stand

    def predicted(self, chain: Sequence[BlockHash], now_s: float) -> Mapping[EndpointName, int]:
        """Tell how many leading blocks of a chain endpoints are about to have cached."""
        return self._predictions.match(chain, now_s)

    def pressure(self, endpoints: int, now_s: float) -> float:
        """Tell how many requests await their first byte per endpoint, on average of some seconds.

        Args:
            endpoints: that there are.
            now_s: by the clock of the board's owner.
        """
        return self._copies * self._crowd.level(now_s) / max(1, endpoints)

    def session_endpoint(self, session: int) -> EndpointName | None:
        """Tell where a conversation was last sent."""
        return self._sessions.get(session)

    def learn(self, until_s: float) -> None:
        """Learn speeds from the first bytes up to a moment: all of them are known, others' too."""
        for endpoint, stand in list(self._unlearned.items()):
            if stand.lessons.learn(until_s):
                del self._unlearned[endpoint]

    def launched(self, router: RouterId, launch: Launch, now_s: float) -> None:
        """Note a decision."""
        known = self._router(router)
        if launch.number in known.awaiting:
            return
        tokens = launch.tokens
        if launch.sketch is not None:
            # Who decided at the same moment as others did not know that they compute it.
            tokens -= int(tokens * self._predictions.share(launch.sketch, launch.endpoint))
        flight = Flight(launch.endpoint, tokens, now_s, launch.sketch, is_silent=launch.is_silent)
        known.awaiting[launch.number] = flight
        stand = self.stand(launch.endpoint)
        stand.add((router, launch.number), flight)
        self._count(router, stand, 1)
        if launch.sketch is not None:
            self._predictions.add(launch.sketch, launch.endpoint)
        if launch.session is not None:
            self._remember(launch.session, launch.endpoint)

    def began(self, router: RouterId, number: int, now_s: float) -> None:
        """Note a first byte: what it computed will be in the index shortly."""
        known = self._router(router)
        flight = known.awaiting.pop(number, None)
        if flight is None:
            return
        stand = self.stand(flight.endpoint)
        stand.began((router, number), flight, now_s)
        self._unlearned[flight.endpoint] = stand
        known.running[flight.endpoint] += 1
        if flight.sketch is not None:
            self._predictions.expire(flight.sketch, flight.endpoint, now_s + limits.EVENT_DUE_S)

    def ended(self, router: RouterId, number: int, endpoint: EndpointName) -> None:
        """Note the end of a flight; one that awaited its first byte has failed."""
        known = self._router(router)
        flight = known.awaiting.pop(number, None)
        if flight is not None:
            self._drop(router, number, flight)
        elif known.running[endpoint] > 0:
            known.running[endpoint] -= 1
            if not known.running[endpoint]:
                del known.running[endpoint]
            self._count(router, self.stand(endpoint), -1)

    def restated(
        self,
        router: RouterId,
        awaiting: Iterable[Launch],
        running: Mapping[EndpointName, int],
        now_s: float,
    ) -> None:
        """Take over everything that a router says it has under way, whatever was missed."""
        known = self._router(router)
        told = {launch.number: launch for launch in awaiting}
        for number in known.awaiting.keys() - told.keys():
            self._drop(router, number, known.awaiting.pop(number))
        for number, launch in told.items():
            if number not in known.awaiting:
                self.launched(router, launch, now_s)
        for endpoint in known.running.keys() | running.keys():
            count = running.get(endpoint, 0)
            self._count(router, self.stand(endpoint), count - known.running[endpoint])
        known.running = Counter({name: count for name, count in running.items() if count})

    def under_way(self) -> tuple[list[Launch], dict[EndpointName, int]]:
        """List what this router has under way: what awaits its first byte, and how many run."""
        known = self._routers[self.me]
        awaiting = [
            Launch(number, flight.endpoint, flight.tokens, flight.is_silent)
            for number, flight in known.awaiting.items()
        ]
        return awaiting, {name: count for name, count in known.running.items() if count}

    def heard(self, router: RouterId, redis_s: float) -> None:
        """Note a sign of life."""
        if router != self.me:
            self._router(router).heard_s = redis_s

    def bury(self, redis_s: float) -> list[RouterId]:
        """Take off what routers had under way that have given no sign for ROUTER_SILENT_S."""
        dead = [
            router
            for router, known in self._routers.items()
            if router != self.me and redis_s - known.heard_s > limits.ROUTER_SILENT_S
        ]
        for router in dead:
            self.forget(router)
        return dead

    def forget(self, router: RouterId) -> None:
        """Take off everything of another router."""
        known = self._routers.pop(router)
        for number, flight in known.awaiting.items():
            self._drop(router, number, flight)
        for endpoint, count in known.running.items():
            self._count(router, self.stand(endpoint), -count)

    def go_blind(self) -> None:
        """Forget what others had under way: from here on they are taken to do as this one does."""
        copies = self.routers
        for router in [each for each in self._routers if each != self.me]:
            self.forget(router)
        self._take_for(copies)

    def see(self) -> None:
        """Count others by what is heard of them, as before `go_blind`."""
        self._take_for(1)

    def _take_for(self, copies: int) -> None:
        self._copies = copies
        for stand in self._stands.values():
            stand.copies = copies

    def _router(self, router: RouterId) -> _Router:
        known = self._routers.get(router)
        if known is None:
            known = self._routers[router] = _Router(0.0)
        return known

    def _drop(self, router: RouterId, number: int, flight: Flight) -> None:
        stand = self.stand(flight.endpoint)
        stand.take((router, number), flight)
        self._count(router, stand, -1)
        if flight.sketch is not None:
            self._predictions.remove(flight.sketch, flight.endpoint)

    def _count(self, router: RouterId, stand: Stand, by: int) -> None:
        stand.requests += by
        if router == self.me:
            stand.own_requests += by

    def _remember(self, session: int, endpoint: EndpointName) -> None:
        self._sessions[session] = endpoint
        self._sessions.move_to_end(session)
        if len(self._sessions) > limits.SESSIONS_MAX:
            self._sessions.popitem(last=False)

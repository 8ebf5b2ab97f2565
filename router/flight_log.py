"""Tell other routers of own flights, and hear of theirs: the board of one model, kept up to date.

A decision reads what is new along with its lookup, and writes one entry; what happens in the same
moment shares it. With the entry comes back what others told before it: the stream puts all
decisions in one order, and of two that did not know of each other the later one is made again.

Nothing that goes wrong here fails a request: while Redis is away the board goes blind after a
second (`trust` falls before), and whatever was missed is made good by the state that each router
tells once a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.deadline import Deadline
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.log import logger
from kvatlas.router.flight_messages import Fields, Outbox, apply_entry, state_fields
from kvatlas.router.flight_stream import NOTHING, Clients, Entries, EntryId, FlightStream, place_of
from kvatlas.router.flights import Board, Launch
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.redis_time import RedisTime

_LOG = logger("flights")


@dataclass(slots=True, eq=False)
class _Entry:
    """An entry that is written, or is about to be.

    Attributes:
        is_told: set when it is written, or could not be.
        place: where it stands, None while it is not known.
    """

    is_told: asyncio.Event = field(default_factory=asyncio.Event)
    place: EntryId | None = None


@dataclass(slots=True)
class OwnFlight:
    """A request of this router under way with an endpoint.

    Attributes:
        launch: as others know it.
        entry: that tells them of it.
        heard: what its decision had heard of others.
    """

    log: FlightLog
    launch: Launch
    entry: _Entry
    heard: EntryId
    _has_begun: bool = False

    def close(self) -> None:
        """Count it out."""
        self.log.ended(self.launch)

    def began(self) -> None:
        """Note the first byte; again is harmless."""
        if not self._has_begun:
            self._has_begun = True
            self.log.began(self.launch)

    async def is_contested(self) -> bool:
        """Tell whether others decided at the same moment, and were heard first.

        Where that is so, this flight's decision did not know of theirs, and should be made again.
        Those that were heard later find out themselves. Alone, nobody waits.
        """
        return await self.log.is_contested(self)

    def lift(self) -> None:
        """Take it off the own board, to decide again where it goes."""
        self.log.board.ended(self.log.board.me, self.launch.number, self.launch.endpoint)

    def fly_to(self, launch: Launch) -> None:
        """Put it back, perhaps with another endpoint, of which others are told."""
        if launch.endpoint == self.launch.endpoint:
            # The decision that keeps it here knew of all that was told before it.
            self.heard = self.entry.place or self.heard
            self.log.board.launched(self.log.board.me, self.launch, monotonic())
        else:
            self.log.move(self, launch)


class FlightLog:
    """The board of one model, kept up to date.

    Args:
        keys: of the model.
        clients: of Redis.
        board: to keep.
        metrics: told what is written, read and lost.
    """

    def __init__(
        self, keys: LoadKeys, clients: Clients, board: Board, metrics: RouterMetrics
    ) -> None:
        self.board = board
        self._model = keys.model
        self._stream = FlightStream(keys.flights, clients)
        self._limit_s = clients.limit_s
        self._metrics = metrics
        self._outbox = Outbox()
        self._number = 0
        self._heard = NOTHING
        self._launches: deque[EntryId] = deque(maxlen=limits.LAUNCHES_HEARD_MAX)
        self._entry = _Entry()
        self._read_at = float("-inf")
        self._redis_time = RedisTime()
        self._is_blind = self._is_failing = False
        self._reading: asyncio.Task[None] | None = None
        self._flushing: asyncio.TimerHandle | asyncio.Handle | None = None
        self._writes: set[asyncio.Task[None]] = set()

    # --- what decisions need ------------------------------------------------------------------

    def flight(self, launch: Launch) -> OwnFlight:
        """Count a request in, until the flight's context ends; it is numbered here."""
        return OwnFlight(self, self._launch(launch), self._entry, self._heard)

    def ended(self, launch: Launch) -> None:
        """Count a request out."""
        self.board.ended(self.board.me, launch.number, launch.endpoint)
        self._outbox.ended.append((launch.number, launch.endpoint))
        self._flush_later()

    def move(self, flight: OwnFlight, launch: Launch) -> None:
        """Tell that an own flight, which is off the board, goes elsewhere."""
        self._outbox.ended.append((flight.launch.number, flight.launch.endpoint))
        flight.launch, flight.entry, flight.heard = self._launch(launch), self._entry, self._heard

    async def is_contested(self, flight: OwnFlight) -> bool:
        """Tell whether launches of others stand before this one that its decision did not know."""
        if self.board.routers == 1 or self._is_failing:
            return False
        with suppress(TimeoutError), Deadline(self._limit_s, limits.LOOKUP_GRACE_S):
            await flight.entry.is_told.wait()
        place = flight.entry.place
        return place is not None and any(
            flight.heard < other < place for other in reversed(self._launches)
        )

    def _launch(self, launch: Launch) -> Launch:
        self._number += 1
        launch = launch._replace(number=self._number)
        self.board.launched(self.board.me, launch, monotonic())
        self._outbox.launched.append(launch)
        if self.board.routers == 1:
            # Nobody decides beside us: it can wait for what else there is to tell.
            self._flush_later()
        else:
            self._flush_soon()
        return launch

    def began(self, launch: Launch) -> None:
        """Note the first byte of an own flight."""
        self.board.began(self.board.me, launch.number, monotonic())
        self._outbox.began.append(launch.number)
        self._flush_later()

    def trust(self, now_s: float) -> float:
        """Tell how far the board can be trusted: 1 when it is fresh, 0 when it is blind."""
        age_s = now_s - self._read_at
        if age_s <= limits.BOARD_FRESH_S:
            return 1.0
        span_s = limits.BOARD_BLIND_S - limits.BOARD_FRESH_S
        return max(0.0, 1.0 - (age_s - limits.BOARD_FRESH_S) / span_s)

    def begin_hearing(self) -> asyncio.Task[None] | None:
        """Begin to read what others have told, for a decision; None where it knows all there is.

        Who is alone hears of another by reading in quiet times, who read a moment ago has read all.
        """
        is_heard = monotonic() - self._read_at < limits.HEARD_ENOUGH_S
        if is_heard or (self.board.routers == 1 and not self._is_failing):
            return None
        return self.begin_refresh()

    def begin_refresh(self) -> asyncio.Task[None]:
        """Begin to read what is new, or join who has begun."""
        reading = self._reading
        if reading is None or reading.done():
            reading = self._reading = asyncio.ensure_future(self._read())
        return reading

    async def end_refresh(self, reading: asyncio.Task[None]) -> None:
        """Wait until what is new has been read. Faults only age the board.

        While Redis does not answer nobody waits for it: `run` finds out when it is back.
        """
        if not reading.done() and not self._is_failing:
            # One that leaves must not take the reading from the others.
            await asyncio.shield(reading)

    # --- in the background --------------------------------------------------------------------

    async def run(self) -> None:
        """Read in quiet times, give a sign of life each second, and bury the dead; for ever."""
        told_at = float("-inf")
        while True:
            await self.begin_refresh()
            now = monotonic()
            if not self._is_blind and now - self._read_at > limits.BOARD_BLIND_S:
                self._go_blind()
            if now - told_at >= limits.ROUTER_STATE_S:
                told_at = now
                self.board.tidy()
                await self._tell_state()
            await asyncio.sleep(limits.BOARD_POLL_S)

    async def aclose(self) -> None:
        """Tell that nothing is under way any more, as far as Redis can be told."""
        if self._flushing is not None:
            self._flushing.cancel()
        for task in list(self._writes):
            await asyncio.wait([task], timeout=limits.REDIS_WRITE_S)
        await self._write(state_fields(self.board.me, [], {}))

    async def _read(self) -> None:
        try:
            entries = await self._stream.read(self._heard)
        except IndexUnavailable as error:
            self._metrics.board_errors.labels(error.reason).inc()
            self._is_failing = True
            return
        self._take(entries)

    def _take(self, entries: Entries) -> None:
        """Take over what was read; readings overlap, so each entry counts once."""
        now = monotonic()
        if entries:
            # The newest one says most of how the clocks differ: by it all of them are dated.
            self._redis_time.local(place_of(entries[-1][0])[0] / 1e3, now)
        for entry_id, fields in entries:
            place = place_of(entry_id)
            if place <= self._heard:
                continue
            self._heard = place
            redis_s = place[0] / 1e3
            told_s = self._redis_time.local(redis_s, now)
            heard = apply_entry(self.board, fields, redis_s, told_s)
            if heard is None:
                self._metrics.board_errors.labels("foreign_entry").inc()
            elif heard:
                self._launches.append(place)
        # What others told of the time before has been read by now, but for what is on its way.
        self.board.learn(now - limits.FLIGHTS_LATE_S)
        self._read_at = now
        self._is_failing = False
        if self._is_blind:
            self._is_blind = False
            self.board.see()
            _LOG.info("board.sees")

    def _go_blind(self) -> None:
        """Take others to do as this router does, and hear of them from the oldest entry on."""
        self._is_blind = True
        self.board.go_blind()
        self._heard = NOTHING
        _LOG.warning("board.blind")

    async def _tell_state(self) -> None:
        """Tell everything that is under way; the answer is Redis' clock, by which the dead are."""
        # What waits to be told goes first: a state knows no sketches.
        if (told := self._next_entry()) is not None:
            await self._tell(*told)
        awaiting, running = self.board.under_way()
        place = await self._write(
            state_fields(self.board.me, awaiting[-limits.STATE_FLIGHTS_MAX :], running)
        )
        if place is None:
            return
        if place < self._heard:
            # The clock of another server, behind that of the one before it.
            self._heard = NOTHING
        for router in self.board.bury(place[0] / 1e3):
            _LOG.warning("router.silent", router=router)
        self._metrics.routers.labels(self._model).set(self.board.routers)

    # --- writing ------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Tell at the end of this turn of the loop: another router may be deciding."""
        if isinstance(self._flushing, asyncio.TimerHandle):
            self._flushing.cancel()
            self._flushing = None
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush_later(self) -> None:
        """Tell in a moment, with what else happens until then."""
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_later(limits.FLIGHTS_TOLD_S, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        told = self._next_entry()
        if told is None:
            return
        if len(self._writes) >= limits.FLIGHT_WRITES_MAX:
            # Redis does not keep up; the next state will say it all.
            self._metrics.board_errors.labels("dropped").inc()
            told[1].is_told.set()
            return
        task = asyncio.ensure_future(self._tell(*told))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    def _next_entry(self) -> tuple[Fields, _Entry] | None:
        """Take what there is to tell, and the entry that its flights wait for."""
        fields = self._outbox.take(self.board.me)
        if not fields:
            return None
        entry, self._entry = self._entry, _Entry()
        return fields, entry

    async def _tell(self, fields: Fields, entry: _Entry) -> None:
        """Append an entry, and hear what was told before it."""
        try:
            entry.place = await self._write(fields)
        finally:
            entry.is_told.set()

    async def _write(self, fields: Fields) -> EntryId | None:
        """Append an entry, and read what is new; give its place, None where that failed."""
        try:
            place, entries = await self._stream.append(fields, self._heard)
        except IndexUnavailable as error:
            self._metrics.board_errors.labels(error.reason).inc()
            return None
        self._take(entries)
        return place

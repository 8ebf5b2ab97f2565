"""Tell other routers of own flights, and hear of theirs: one Redis stream per model.

A decision reads what is new along with its lookup, and writes one entry; what happens in the same
moment shares it. Nothing that goes wrong here fails a request: while Redis is away the board goes
blind after a second (`trust` falls before), and whatever was missed is made good by the state that
each router tells once a second.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.deadline import Deadline
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.log import logger
from kvatlas.common.redis_client import RedisArg, guard
from kvatlas.common.settings import Settings
from kvatlas.router.flight_messages import Fields, Outbox, apply_entry, state_fields
from kvatlas.router.flights import Board, Launch, RouterId
from kvatlas.router.metrics import RouterMetrics

_LOG = logger("flights")

OLDEST: Final = b"0"
"""Stands before every entry."""


def new_router_id() -> RouterId:
    """Draw a name for a router process."""
    return RouterId(f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}")


def boards_of(settings: Settings) -> dict[ModelName, Board]:
    """Make the board of each model; on all of them this process has one name."""
    me, rate = new_router_id(), settings.router.prefill_tokens_per_s
    return {m.model: Board(me, rate) for m in settings.models}


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections to Redis: what is read may come from a replica."""

    reader: Redis
    writer: Redis


@dataclass(slots=True)
class OwnFlight:
    """A request of this router under way with an endpoint."""

    log: FlightLog
    launch: Launch
    _has_begun: bool = False

    def began(self) -> None:
        """Note the first byte; again is harmless."""
        if not self._has_begun:
            self._has_begun = True
            self.log.began(self.launch)


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
        self._keys = keys
        self._clients = clients
        self._metrics = metrics
        self._outbox = Outbox()
        self._number = 0
        self._last = OLDEST
        self._read_at = float("-inf")
        self._is_blind = self._is_failing = False
        self._reading: asyncio.Task[None] | None = None
        self._flushing: asyncio.TimerHandle | asyncio.Handle | None = None
        self._writes: set[asyncio.Task[bytes | None]] = set()

    # --- what decisions need ------------------------------------------------------------------

    @contextmanager
    def flight(self, launch: Launch) -> Iterator[OwnFlight]:
        """Count a request in, and out again whatever happens; it is numbered here."""
        self._number += 1
        launch = launch._replace(number=self._number)
        self.board.launched(self.board.me, launch, monotonic())
        self._outbox.launch(launch)
        self._flush_soon()
        try:
            yield OwnFlight(self, launch)
        finally:
            self.board.ended(self.board.me, launch.number, launch.endpoint)
            self._outbox.ended.append((launch.number, launch.endpoint))
            self._flush_later()

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
        key, last = self._keys.flights, self._last
        try:
            with guard(), Deadline(limits.LOOKUP_S, limits.LOOKUP_GRACE_S):
                reply = await _call(
                    self._clients.reader,
                    "XREAD",
                    "COUNT",
                    limits.FLIGHTS_READ_MAX,
                    "STREAMS",
                    key,
                    last,
                )
        except IndexUnavailable as error:
            self._metrics.board_errors.labels(error.reason).inc()
            self._is_failing = True
            return
        now = monotonic()
        for entry_id, fields in _entries(reply):
            self._last = entry_id
            if not apply_entry(self.board, fields, _redis_s(entry_id), now):
                self._metrics.board_errors.labels("foreign_entry").inc()
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
        self._last = OLDEST
        _LOG.warning("board.blind")

    async def _tell_state(self) -> None:
        """Tell everything that is under way; the answer is Redis' clock, by which the dead are."""
        awaiting, running = self.board.under_way()
        # What is not yet told is in the state.
        self._outbox = Outbox()
        entry_id = await self._write(
            state_fields(self.board.me, awaiting[-limits.STATE_FLIGHTS_MAX :], running)
        )
        if entry_id is None:
            return
        redis_s = _redis_s(entry_id)
        if redis_s < _redis_s(self._last):
            # The clock of another server, behind that of the one before it.
            self._last = OLDEST
        for router in self.board.bury(redis_s):
            _LOG.warning("router.silent", router=router)
        self._metrics.routers.labels(self._keys.model).set(self.board.routers)

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
        fields = self._outbox.take(self.board.me)
        if not fields:
            return
        if len(self._writes) >= limits.FLIGHT_WRITES_MAX:
            # Redis does not keep up; the next state will say it all.
            self._metrics.board_errors.labels("dropped").inc()
            return
        task = asyncio.ensure_future(self._write(fields))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, fields: Fields) -> bytes | None:
        """Append an entry; give its id, None where that failed."""
        key, writer = self._keys.flights, self._clients.writer
        try:
            with guard():
                async with asyncio.timeout(limits.REDIS_WRITE_S):
                    entry_id: bytes = await _call(
                        writer, "XADD", key, "MAXLEN", "~", limits.FLIGHT_ENTRIES_MAX, "*", *fields
                    )
                    if "state" in fields:
                        # A model that nobody routes to any more leaves nothing behind.
                        await _call(writer, "EXPIRE", key, limits.FLIGHT_LOG_S)
        except IndexUnavailable as error:
            self._metrics.board_errors.labels(error.reason).inc()
            return None
        return entry_id


def _redis_s(entry_id: bytes) -> float:
    """Read the time of an entry off its id, in seconds of Redis' clock."""
    return int(entry_id.partition(b"-")[0]) / 1e3


async def _call(client: Redis, *command: RedisArg) -> Any:
    run: Callable[..., Awaitable[Any]] = client.execute_command
    return await run(*command)


def _entries(reply: Any) -> Sequence[tuple[bytes, Sequence[bytes]]]:
    """Find the entries in a reply to XREAD of one stream; a null reply is none."""
    return reply[0][1] if reply else ()


class FlightLogs:
    """The flight logs of all models.

    Args:
        logs: by model.
    """

    def __init__(self, logs: Mapping[ModelName, FlightLog]) -> None:
        self._logs = logs

    def of(self, model: ModelName) -> FlightLog:
        """Give a model's."""
        return self._logs[model]

    async def run(self) -> None:
        """Keep all boards up to date, for ever."""
        async with asyncio.TaskGroup() as group:
            for log in self._logs.values():
                group.create_task(log.run())

    async def aclose(self) -> None:
        """Say for all that nothing is under way any more."""
        await asyncio.gather(*(log.aclose() for log in self._logs.values()))

"""One Redis stream, in which all routers of a model tell each other what they do.

What is told is written and what is new is read in the same round trip; the stream puts all of it in
one order. Which entries are new is the caller's to know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis

from kvatlas.common import limits
from kvatlas.common.deadline import Deadline
from kvatlas.common.redis_client import RedisArg, guard
from kvatlas.router.flight_messages import Fields

EntryId = tuple[int, int]
"""Place of an entry in the stream: milliseconds of Redis' clock, and a number within them."""

NOTHING: Final[EntryId] = (0, 0)
"""Stands before every entry."""

Entries = Sequence[tuple[bytes, Sequence[bytes]]]
"""Entries as Redis gives them: id and fields."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections to Redis.

    Attributes:
        reader: may be of a replica.
        limit_s: for Redis to answer while a decision waits.
    """

    reader: Redis
    writer: Redis
    limit_s: float = field(default_factory=lambda: limits.LOOKUP_S)


class FlightStream:
    """The stream of one model.

    Every method raises IndexUnavailable when Redis does not answer in time, or refuses.

    Args:
        key: of the stream.
        clients: of Redis.
    """

    def __init__(self, key: str, clients: Clients) -> None:
        self._key = key
        self._clients = clients

    async def read(self, heard: EntryId) -> Entries:
        """Read what was told behind an entry; a decision waits for it."""
        with guard(), Deadline(self._clients.limit_s, limits.LOOKUP_GRACE_S):
            return _entries(await _call(self._clients.reader, *self._behind(heard)))

    async def append(self, fields: Fields, heard: EntryId) -> tuple[EntryId, Entries]:
        """Append an entry, and read what is new; give the entry's place, too."""
        pipe = self._clients.writer.pipeline(transaction=False)
        most = limits.FLIGHT_ENTRIES_MAX
        pipe.execute_command("XADD", self._key, "MAXLEN", "~", most, "*", *fields)
        pipe.execute_command(*self._behind(heard))
        if "state" in fields:
            # A model that nobody routes to any more leaves nothing behind.
            pipe.execute_command("EXPIRE", self._key, limits.FLIGHT_LOG_S)
        with guard():
            async with asyncio.timeout(limits.REDIS_WRITE_S):
                entry_id, reply, *_ = await pipe.execute()
        return place_of(entry_id), _entries(reply)

    def _behind(self, heard: EntryId) -> tuple[RedisArg, ...]:
        """Give the command that reads what is new."""
        last = f"{heard[0]}-{heard[1]}"
        return ("XREAD", "COUNT", limits.FLIGHTS_READ_MAX, "STREAMS", self._key, last)


def place_of(entry_id: bytes) -> EntryId:
    """Read an id."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


async def _call(client: Redis, *command: RedisArg) -> Any:
    run: Callable[..., Awaitable[Any]] = client.execute_command
    return await run(*command)


def _entries(reply: Any) -> Entries:
    """Find the entries in a reply to XREAD of one stream; a null reply is none."""
    return reply[0][1] if reply else ()

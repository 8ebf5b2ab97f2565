"""What clients' connections to one port share: how many there are, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from kvatlas.common.errors import HttpError
from kvatlas.router.request import Request, Response
from kvatlas.router.writing import Dates

Handler = Callable[[Request], Awaitable[Response | None]]
"""Answers a request; None where it has written the answer piece by piece."""

Refusal = Callable[[HttpError, str], Response]
"""Writes an error, in the shape that clients of a path expect; "" where it is not known."""


class Held(Protocol):
    """A connection that is open."""

    def leave_if_idle(self) -> None:
        """Close unless it is busy."""

    def abort(self) -> None:
        """Break it off."""


class Inbound:
    """All connections of clients to one port.

    Args:
        handler: answers requests.
        refusal: writes errors of HTTP itself.
        connections_max: open at once; those above are told so and closed.

    Attributes:
        is_closing: whether clients are told to take their next request elsewhere.
        is_closed: whether connections end behind the answer that they wait for, told or not.
        emptied: set when it is closed and no connection is left.
        server: that listens.
        refused: connections that were too many, since the start.
        cut_heads: those that sent no head in time, alike.
        cut_readers: those that did not read, alike.
    """

    def __init__(self, handler: Handler, refusal: Refusal, connections_max: int) -> None:
        self.handler = handler
        self.refusal = refusal
        self.connections_max = connections_max
        self.connections: set[Held] = set()
        self.dates = Dates()
        self.is_closing = self.is_closed = False
        self.emptied = asyncio.Event()
        self.server: asyncio.Server | None = None
        self.refused = self.cut_heads = self.cut_readers = 0

    def send_away(self) -> None:
        """Tell clients with each answer that their connection ends with it.

        Idle connections stay: a client may be about to send on one, and was told nothing.
        """
        self.is_closing = True

    def close(self) -> None:
        """Take no connection any more, and close each behind its answer; idle ones at once."""
        self.is_closing = self.is_closed = True
        if self.server is not None:
            self.server.close()
        for connection in list(self.connections):
            connection.leave_if_idle()
        if not self.connections:
            self.emptied.set()

    def left(self, connection: Held) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if self.is_closed and not self.connections:
            self.emptied.set()

    def tear(self) -> None:
        """Break off what is left."""
        for connection in list(self.connections):
            connection.abort()

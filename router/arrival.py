"""An answer of an engine on its way, followed by callbacks."""

from __future__ import annotations

import asyncio
from typing import Final, Literal, Protocol

from kvatlas.common.errors import KvatlasError
from kvatlas.router.request import Headers

Kind = Literal[
    "connect", "connect_timeout", "tls", "disconnected", "protocol", "first_byte_timeout",
    "idle", "broken",
]  # fmt: skip
"""How an engine fails; those from "idle" on behind the first byte."""


_NONE_YET: Final = Headers([])


class EngineFailed(KvatlasError):
    """An engine could not be reached, or gave no answer.

    Args:
        kind: how.
        is_reused: whether it was on a connection that had been used before, which the engine may
            have closed at that moment.
    """

    def __init__(self, kind: Kind, *, is_reused: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.is_reused = is_reused


class Carrier(Protocol):
    """What an answer comes over."""

    def pause(self, answer: Answer) -> None:
        """Read nothing more of it."""

    def resume(self, answer: Answer) -> None:
        """Read on."""

    def give_up(self, answer: Answer) -> None:
        """End it."""


class Sink(Protocol):
    """What takes the body of an answer."""

    def data(self, piece: bytes) -> None:
        """Take a piece, as it was read."""

    def ended(self) -> None:
        """Note the end."""

    def failed(self, kind: Kind) -> None:
        """Note that the engine failed in the middle."""


class Answer:
    """An answer on its way.

    Attributes:
        is_whole: whether all of it is here.
        failure: how the engine failed behind the first byte; None while it does not.
    """

    __slots__ = (
        "_connection", "_first", "_pieces", "_sink", "content_type", "failure", "headers",
        "is_reused", "is_whole", "reason", "status",
    )  # fmt: skip

    def __init__(self, connection: Carrier, first: asyncio.Future[None]) -> None:
        self._connection = connection
        self._first = first
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self.is_reused = False
        self.status = 0
        self.reason = ""
        self.headers = _NONE_YET
        self.content_type = ""
        self.is_whole = False
        self.failure: Kind | None = None

    @property
    def is_begun(self) -> bool:
        """Tell whether something of the body has come."""
        return self._first.done()

    def take(self) -> bytes:
        """Give what of the body has come and nobody has taken."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def attach(self, sink: Sink) -> None:
        """Give the body to a sink from here on."""
        self._sink = sink
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            sink.data(piece)
        if self.is_whole:
            sink.ended()
        elif self.failure is not None:
            sink.failed(self.failure)

    def pause(self) -> None:
        """Read nothing more: whoever takes it does not keep up."""
        self._connection.pause(self)

    def resume(self) -> None:
        """Read on."""
        self._connection.resume(self)

    def close(self) -> None:
        """Give it up; the engine sees that nobody listens any more."""
        if not self.is_whole:
            self._connection.give_up(self)

    # --- for the connection -------------------------------------------------------------------

    async def first(self, within_s: float) -> None:
        """Wait until something of the body is here, or all of an empty one.

        Raises:
            EngineFailed: there is nothing.
        """
        timer = asyncio.get_running_loop().call_later(within_s, self._late)
        try:
            await self._first
        finally:
            timer.cancel()

    def _late(self) -> None:
        self.fail("first_byte_timeout")

    def feed(self, piece: bytes) -> None:
        """Take in a piece."""
        if self._sink is not None:
            self._sink.data(piece)
            return
        self._pieces.append(piece)
        self._wake()

    def complete(self) -> None:
        """Note the end."""
        self.is_whole = True
        if self._sink is not None:
            self._sink.ended()
        self._wake()

    def fail(self, kind: Kind) -> None:
        """Note that the engine failed."""
        if self.is_whole or self.failure is not None:
            return
        if self._first.done() and not self._first.cancelled():
            self.failure = kind
            if self._sink is not None:
                self._sink.failed(kind)
        elif not self._first.done():
            self._first.set_exception(EngineFailed(kind, is_reused=self.is_reused))

    def _wake(self) -> None:
        if not self._first.done():
            self._first.set_result(None)

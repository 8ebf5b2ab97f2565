"""A client's request, and answers that are whole, as the router's handlers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from kvatlas.common.errors import BodyTimeout, BodyTooLarge, HttpError
from kvatlas.router.headers import Header

if TYPE_CHECKING:
    from kvatlas.router.keys import Client

JSON_TYPE: Final = "application/json"
_AHEAD_BYTES: Final = 64 * 1024
"""Of a body that are taken in before anybody asks for it."""


class Headers(Mapping[str, str]):
    """Headers as received, in order; any spelling finds a name.

    Args:
        received: names and values. Bytes that are no UTF-8 are surrogates in them.
    """

    __slots__ = ("_by_name", "received")

    def __init__(self, received: list[Header]) -> None:
        self.received = received
        by_name: dict[str, str] = {}
        for name, value in received:
            by_name.setdefault(name.lower(), value)
        self._by_name = by_name

    def __getitem__(self, name: str) -> str:
        """Give the first value of a name."""
        return self._by_name[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:
        """Give the first value of a name, else `default`."""
        return self._by_name.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in lower case."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """Count the names."""
        return len(self._by_name)

    def getall(self, name: str) -> list[str]:
        """Give all values of a name."""
        low = name.lower()
        if low not in self._by_name:
            return []
        return [value for key, value in self.received if key.lower() == low]


class Response:
    """An answer of our own, or one that has come in whole.

    Attributes:
        then: what is done when it has been written; the client need not wait for it.
    """

    __slots__ = ("body", "headers", "reason", "status", "then")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: list[Header] | None = None,
        reason: str = "",
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers if headers is not None else []
        self.reason = reason
        self.then: list[Callable[[], None]] = []

    @classmethod
    def json(cls, content: Any, status: int = 200) -> Response:
        """Write a JSON answer."""
        return cls(status, orjson.dumps(content), [("Content-Type", JSON_TYPE)])


class Source(Protocol):
    """What fills an answer piece by piece."""

    def pause(self) -> None:
        """Give nothing more: the client does not keep up."""

    def resume(self) -> None:
        """Go on."""


class Outflow(Protocol):
    """An answer on its way to the client piece by piece."""

    def begin(self, status: int, reason: str, headers: Sequence[Header], source: Source) -> None:
        """Write the head."""

    def write(self, piece: bytes) -> None:
        """Write a piece of the body; it leaves at once."""

    def end(self) -> None:
        """End it well."""

    def tear(self) -> None:
        """Break it off, so that the client sees that it is not whole."""


class Request:
    """A request whose head has been read.

    Attributes:
        method: such as "POST".
        path: as the client wrote it, without the query.
        query: behind the question mark, which is part of it; empty where there is none.
        content_length: of the body; None where it comes in chunks.
        outflow: where an answer goes that comes piece by piece.
        client: who sent it, where keys are asked for.
        is_whole: whether all of the body is here.
    """

    __slots__ = (
        "_ask", "_bytes_max", "_error", "_pieces", "_size", "_waiting", "client", "content_length",
        "headers", "is_http_10", "is_whole", "keeps_alive", "method", "outflow", "path", "peer",
        "query",
    )  # fmt: skip

    def __init__(self, method: str, target: str, headers: Headers) -> None:
        self.method = method
        path, mark, query = target.partition("?")
        self.path, self.query = path, mark + query
        self.headers = headers
        self.content_length: int | None = 0
        self.peer: str | None = None
        self.outflow: Outflow
        self.client: Client | None = None
        self.is_whole = False
        self.is_http_10 = False
        self.keeps_alive = True
        self._pieces: list[bytes] = []
        self._size = 0
        self._bytes_max: int | None = None
        self._ask: Callable[[], None]
        self._waiting: asyncio.Future[None] | None = None
        self._error: HttpError | None = None

    # --- for handlers -------------------------------------------------------------------------

    async def body(self, bytes_max: int, within_s: float) -> bytes:
        """Give the body.

        Raises:
            HttpError: the client's; it is too large, late, or cannot be read.
        """
        if self._error is not None:
            raise self._error
        self._bytes_max = bytes_max
        if (self.content_length or 0) > bytes_max:
            raise _too_large(bytes_max)
        if not self.is_whole and self._size <= bytes_max:
            await self._receive(within_s)
        if self._size > bytes_max:
            raise _too_large(bytes_max)
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _receive(self, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        timer = loop.call_later(within_s, self._late)
        self._ask()
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    def _late(self) -> None:
        self.fail(BodyTimeout("the body did not arrive in time"))

    # --- for the connection -------------------------------------------------------------------

    def on_ask(self, ask: Callable[[], None]) -> None:
        """Say what is called when somebody waits for the body."""
        self._ask = ask

    @property
    def size(self) -> int:
        """Count the bytes of the body that have come."""
        return self._size

    def came_as(self, body: bytes) -> bool:
        """Tell whether a body is the one that came, in one piece."""
        return len(self._pieces) == 1 and self._pieces[0] == body

    @property
    def is_ahead(self) -> bool:
        """Tell whether enough of the body is here until somebody asks for it."""
        return self._waiting is None and self._size >= _AHEAD_BYTES

    def feed(self, piece: bytes) -> None:
        """Take in a piece of the body."""
        self._size += len(piece)
        if self._bytes_max is not None and self._size > self._bytes_max:
            # Nobody will read it.
            self._pieces.clear()
            self._wake()
        else:
            self._pieces.append(piece)

    def complete(self) -> None:
        """Note that the body is whole."""
        self.is_whole = True
        self._wake()

    def fail(self, error: HttpError) -> None:
        """Note that the rest of the body will not be had."""
        self._error = error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {bytes_max} bytes")

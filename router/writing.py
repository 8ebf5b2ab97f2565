"""Answers to a client's bytes: HTTP/1.1, whole or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from time import time as wall
from typing import Final

from kvatlas.router.headers import Header
from kvatlas.router.request import Request, Response

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
BODILESS: Final = frozenset({204, 304})
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_CLOSE: Final = b"Connection: close\r\n"
_KEEP: Final = b"Connection: keep-alive\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


class Dates:
    """The Date header's line, written once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        """Give it."""
        second = int(wall())
        if self._second != second:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


class AnswerWriter:
    """Write the answers of one connection.

    Attributes:
        is_chunked: whether the answer under way comes in chunks.
    """

    __slots__ = ("_dates", "_transport", "is_chunked")

    def __init__(self, transport: asyncio.Transport, dates: Dates) -> None:
        self._transport = transport
        self._dates = dates
        self.is_chunked = False

    def whole(self, response: Response, request: Request | None, *, keeps_alive: bool) -> None:
        """Write an answer at once; without a request it is one to what could not be read."""
        framing = b"" if response.status in BODILESS else _length(len(response.body))
        is_http_10 = request is not None and request.is_http_10
        head = self._head(response.status, response.reason, response.headers)
        head += framing + _connection(is_http_10=is_http_10, keeps=keeps_alive) + b"\r\n"
        is_head = request is not None and request.method == "HEAD"
        self._put(head if is_head else head + response.body)

    def begin(self, request: Request, status: int, reason: str, headers: Sequence[Header]) -> bool:
        """Write the head of an answer that comes piece by piece.

        Returns:
            Whether its end shows without the end of the connection.
        """
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        self.is_chunked = not (has_length or request.is_http_10 or status in BODILESS)
        shows = self.is_chunked or has_length
        request.keeps_alive = request.keeps_alive and shows
        head = self._head(status, reason, headers) + (_CHUNKED if self.is_chunked else b"")
        head += _connection(is_http_10=request.is_http_10, keeps=request.keeps_alive)
        self._put(head + b"\r\n")
        return shows

    def piece(self, piece: bytes) -> None:
        """Write a piece of its body; it leaves at once."""
        if self.is_chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._put(piece)

    def end(self) -> None:
        """End it well."""
        if self.is_chunked:
            self._put(LAST_CHUNK)

    def _put(self, data: bytes) -> None:
        # Between a client's going and our being told, uvloop raises where asyncio drops.
        if not self._transport.is_closing():
            self._transport.write(data)

    def _head(self, status: int, reason: str, headers: Sequence[Header]) -> bytes:
        told = "".join([f"{name}: {value}\r\n" for name, value in headers])
        line = f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\n"
        written = (line + told).encode("utf-8", "surrogateescape")
        return written + self._dates.line() + b"Server: kvatlas\r\n"


def _length(length: int) -> bytes:
    return b"Content-Length: %d\r\n" % length


def _connection(*, is_http_10: bool, keeps: bool) -> bytes:
    if not keeps:
        return _CLOSE
    return _KEEP if is_http_10 else b""

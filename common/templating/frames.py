"""What passes between us and a process that renders: a byte that says what, a length, bytes."""

from __future__ import annotations

import socket
from struct import Struct
from typing import Final

_HEAD: Final = Struct(">BI")
_PIECE_BYTES: Final = 1 << 20

DONE: Final = 0
FAILED: Final = 1
"""The template raised, or is none."""
TOO_LONG: Final = 2
"""What it rendered is too long to be tokenized."""


class Closed(Exception):
    """The other side is gone, or does not speak like one of ours."""


def send(connection: socket.socket, kind: int, payload: bytes) -> None:
    """Send one frame.

    Raises:
        Closed: the other side is gone.
        TimeoutError: the socket has a timeout, and it is over.
    """
    try:
        connection.sendall(_HEAD.pack(kind, len(payload)) + payload)
    except ConnectionError:
        raise Closed from None


def receive(connection: socket.socket, bytes_max: int) -> tuple[int, bytes]:
    """Receive one frame.

    Raises:
        Closed: the other side is gone, or says that it sends more than it may.
        TimeoutError, BlockingIOError: the socket has a timeout, and it is over.
    """
    kind, size = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if size > bytes_max:
        raise Closed
    return kind, _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    pieces = []
    while size:
        try:
            piece = connection.recv(min(size, _PIECE_BYTES))
        except ConnectionError:
            raise Closed from None
        if not piece:
            raise Closed
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)

"""Heads of calls, and blocks of headers that answer them (HPACK, RFC 7541).

Reading is left to `hpack`. A gateway sends the same few bytes with each call once its fields are in
the dynamic table, so what a block says is kept until the table changes. Ours need no table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

import hpack

from kvatlas.common import limits
from kvatlas.common.records import record
from kvatlas.router.grpc.frames import Code, Fault

# It logs each header where DEBUG is on.
logging.getLogger("hpack").setLevel(logging.WARNING)

_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path"})
_MUST: Final = frozenset({b":method", b":scheme", b":path"})
_OF_HTTP_1: Final = frozenset({
    b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade",
})  # fmt: skip


class Status(IntEnum):
    """How a call ended (grpc-status)."""

    OK = 0
    CANCELLED = 1
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


@record
class Head:
    """What the head of a call says.

    Attributes:
        path: of the method; "" where the head breaks HTTP's rules.
        http_status: of the answer: 200, or why it is none of gRPC's.
    """

    path: str
    http_status: int = 200


MALFORMED: Final = Head("")


class HeadReader:
    """Read the blocks of one connection, all of them and in order.

    Cost: 0.2 us of one that is known, else 20 to 100 us.
    """

    __slots__ = ("_decoder", "_known")

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=limits.HEADERS_BYTES_MAX)
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Read one.

        Raises:
            Fault: the table is not what the peer thinks.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        before = (table.maxsize, *table.dynamic_entries)
        try:
            found = _head(self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise Fault(Code.ENHANCE_YOUR_CALM, "headers are too large") from None
        except hpack.HPACKError:
            raise Fault(Code.COMPRESSION_ERROR, "headers cannot be read") from None
        if (table.maxsize, *table.dynamic_entries) != before:
            self._known.clear()
        elif (
            len(self._known) < limits.GRPC_HEADS_KNOWN_MAX
            and len(block) <= limits.GRPC_HEAD_KNOWN_BYTES_MAX
        ):
            self._known[block] = found
        return found


def _head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    pseudo: dict[bytes, bytes] = {}
    kind = b""
    is_in_pseudo = True
    for name, value in fields:
        if name[:1] == b":":
            if not is_in_pseudo or name in pseudo or name not in _PSEUDO:
                return MALFORMED
            pseudo[name] = value
            continue
        is_in_pseudo = False
        if name in _OF_HTTP_1 or name != name.lower() or (name == b"te" and value != b"trailers"):
            return MALFORMED
        if name == b"content-type":
            kind = value.lower()
    if not pseudo.keys() >= _MUST or not pseudo[b":path"]:
        return MALFORMED
    if pseudo[b":method"] != b"POST":
        return Head("", 405)
    is_grpc = kind == b"application/grpc" or kind.startswith((
        b"application/grpc+", b"application/grpc;",
    ))  # fmt: skip
    return Head(pseudo[b":path"].decode("latin-1")) if is_grpc else Head("", 415)


# --- what is answered -----------------------------------------------------------------------------


def _literal(name: bytes, value: bytes) -> bytes:
    """Write a field that leaves the peer's table alone."""
    return b"\x00" + _text(name) + _text(value)


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < 0x7F:
        return bytes((size,)) + value
    out, size = bytearray(b"\x7f"), size - 0x7F
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + value


def _indexed_status(status: int) -> bytes:
    return b"\x88" if status == 200 else b"\x08" + _text(b"%d" % status)


ANSWER: Final = _indexed_status(200) + _literal(b"content-type", b"application/grpc")
"""The head of an answer."""
WELL: Final = _literal(b"grpc-status", b"0")
"""Its trailers, where nothing went wrong."""


def not_grpc(status: int) -> bytes:
    """Write the head of an answer to what is no call."""
    return _indexed_status(status)


def trailers(status: Status, text: str = "") -> bytes:
    """Write the end of an answer."""
    if status is Status.OK:
        return WELL
    message = b"".join(
        bytes((each,)) if 0x20 <= each <= 0x7E and each != 0x25 else b"%%%02X" % each
        for each in text.encode()[: limits.GRPC_TEXT_BYTES_MAX]
    )
    block = _literal(b"grpc-status", b"%d" % status)
    return block + _literal(b"grpc-message", message) if message else block

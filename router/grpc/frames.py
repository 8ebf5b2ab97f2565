"""Frames of HTTP/2 (RFC 9113), out of bytes and into them; nothing is known of streams here."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final

from kvatlas.common import limits

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
NUMBER_MAX: Final = 2**31 - 1
"""Of a stream, and of bytes in a window."""
WINDOW_BYTES: Final = 65_535
"""Of streams and connections until told otherwise."""
FRAME_BYTES_LEAST: Final = 16_384
"""That each side takes; more only where it says so."""

(DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE,
 CONTINUATION) = range(10)  # fmt: skip
END_STREAM, ACK, END_HEADERS, PADDED, WEIGHTED = 0x1, 0x1, 0x4, 0x8, 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, STREAMS_MAX, INITIAL_WINDOW, FRAME_MAX, HEADER_LIST_MAX = range(
    1, 7
)

Frame = tuple[int, int, int, bytes, int]
"""Kind, flags, stream, payload without padding, and its length on the wire."""

_HEAD: Final = Struct(">HBBBI")
_U32: Final = Struct(">I")
_SETTING: Final = Struct(">HI")
_LENGTHS: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS: Final = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION})
_OF_CONNECTIONS: Final = frozenset({SETTINGS, PING, GOAWAY})


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Fault(Exception):
    """What came ends the connection; the peer's.

    Args:
        code: that it is told.
        what: was wrong, in our words.
    """

    def __init__(self, code: Code, what: str) -> None:
        super().__init__(what)
        self.code = code


class FrameReader:
    """Read the frames of one connection.

    A block of headers comes out as one HEADERS frame, however many it took.
    """

    __slots__ = ("_block", "_continuations", "_has_preface", "_has_settings", "_rest", "_since")

    def __init__(self) -> None:
        self._rest = b""
        self._has_preface = self._has_settings = False
        self._block: bytearray | None = None
        self._since = (0, 0)
        self._continuations = 0

    @property
    def is_greeted(self) -> bool:
        """Tell whether the peer has said that it speaks HTTP/2, and how."""
        return self._has_settings

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Give the frames that are whole; all must be taken before more is fed.

        Raises:
            Fault: nothing behind it can be read.
        """
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._has_preface:
            if not data.startswith(PREFACE):
                if not PREFACE.startswith(data[: len(PREFACE)]):
                    raise Fault(Code.PROTOCOL_ERROR, "no HTTP/2")
                self._rest = data
                return
            self._has_preface, at = True, len(PREFACE)
        size = len(data)
        while size - at >= HEAD_BYTES:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > limits.GRPC_FRAME_BYTES_MAX:
                raise Fault(Code.FRAME_SIZE_ERROR, "a frame is too large")
            start = at + HEAD_BYTES
            if start + length > size:
                break
            at = start + length
            stream &= NUMBER_MAX
            if kind == DATA and stream and self._block is None and self._has_settings:
                payload = data[start:at]
                yield kind, flags, stream, _unpadded(flags, payload), length
            elif (frame := self._taken(kind, flags, stream, data[start:at])) is not None:
                yield frame
        self._rest = data[at:]

    def _taken(self, kind: int, flags: int, stream: int, payload: bytes) -> Frame | None:
        """Check a frame; None where it is a part of a block."""
        if not self._has_settings:
            if kind != SETTINGS or flags & ACK:
                raise Fault(Code.PROTOCOL_ERROR, "no settings at the beginning")
            self._has_settings = True
        if (self._block is not None) != (kind == CONTINUATION):
            raise Fault(Code.PROTOCOL_ERROR, "a block of headers is not whole")
        if (not stream and kind in _OF_STREAMS) or (stream and kind in _OF_CONNECTIONS):
            raise Fault(Code.PROTOCOL_ERROR, "a frame is of the wrong stream")
        length = len(payload)
        if _LENGTHS.get(kind, length) != length:
            raise Fault(Code.FRAME_SIZE_ERROR, "a frame has another length")
        if kind == HEADERS:
            return self._begun(flags, stream, payload)
        if kind == CONTINUATION:
            return self._continued(flags, stream, payload)
        if kind == PUSH_PROMISE:
            raise Fault(Code.PROTOCOL_ERROR, "a client that pushes")
        return kind, flags, stream, payload, length

    def _begun(self, flags: int, stream: int, payload: bytes) -> Frame | None:
        block = _unpadded(flags, payload)
        if flags & WEIGHTED:
            if len(block) < _LENGTHS[PRIORITY]:
                raise Fault(Code.FRAME_SIZE_ERROR, "a frame has another length")
            block = block[_LENGTHS[PRIORITY] :]
        if flags & END_HEADERS:
            return HEADERS, flags, stream, block, len(payload)
        self._block, self._since, self._continuations = bytearray(block), (flags, stream), 0
        return None

    def _continued(self, flags: int, stream: int, payload: bytes) -> Frame | None:
        begun_flags, begun_stream = self._since
        block = self._block
        if block is None or stream != begun_stream:
            raise Fault(Code.PROTOCOL_ERROR, "a block of headers is not whole")
        block += payload
        self._continuations += 1
        too_many = self._continuations > limits.GRPC_CONTINUATIONS_MAX
        if too_many or len(block) > limits.HEADERS_BYTES_MAX:
            raise Fault(Code.ENHANCE_YOUR_CALM, "a block of headers is too large")
        if not flags & END_HEADERS:
            return None
        self._block = None
        return HEADERS, begun_flags, stream, bytes(block), len(block)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Fault(Code.PROTOCOL_ERROR, "more padding than there is room for")
    return payload[1 : len(payload) - payload[0]]


def read_number(payload: bytes) -> int:
    """Read what an RST_STREAM or a WINDOW_UPDATE brings."""
    (value,) = _U32.unpack(payload)
    return int(value)


def read_settings(payload: bytes) -> dict[int, int]:
    """Read settings; those that we do not know are among them.

    Raises:
        Fault: one of them must not be.
    """
    if len(payload) % _SETTING.size:
        raise Fault(Code.FRAME_SIZE_ERROR, "a frame has another length")
    found: dict[int, int] = dict(_SETTING.iter_unpack(payload))
    if found.get(ENABLE_PUSH, 0) > 1:
        raise Fault(Code.PROTOCOL_ERROR, "a setting is out of range")
    if found.get(INITIAL_WINDOW, 0) > NUMBER_MAX:
        raise Fault(Code.FLOW_CONTROL_ERROR, "a setting is out of range")
    if not FRAME_BYTES_LEAST <= found.get(FRAME_MAX, FRAME_BYTES_LEAST) < 2**24:
        raise Fault(Code.PROTOCOL_ERROR, "a setting is out of range")
    return found


def head(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Write what precedes a payload."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return head(kind, flags, stream, len(payload)) + payload


def settings(values: dict[int, int]) -> bytes:
    """Write what we ask of a peer."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def window_update(stream: int, size: int) -> bytes:
    """Let a peer send more."""
    return frame(WINDOW_UPDATE, 0, stream, _U32.pack(size))


def reset(stream: int, code: Code) -> bytes:
    """Break a stream off."""
    return frame(RST_STREAM, 0, stream, _U32.pack(code))


def goaway(last: int, code: Code, what: str = "") -> bytes:
    """Announce the end of a connection.

    Args:
        last: the last stream that is still served.
        code: why.
        what: was wrong, for the peer's log.
    """
    return frame(GOAWAY, 0, 0, _U32.pack(last) + _U32.pack(code) + what.encode())

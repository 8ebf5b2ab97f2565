"""gRPC's messages in the bytes of a call: each has a length before it."""

from __future__ import annotations

from struct import Struct
from typing import Final

from kvatlas.router.grpc.heads import Status

PREFIX: Final = Struct(">BI")


class BadMessage(Exception):
    """What came ends the call; the peer's.

    Args:
        status: that it is told.
        what: was wrong, in our words.
    """

    def __init__(self, status: Status, what: str) -> None:
        super().__init__(what)
        self.status = status


class MessageReader:
    """Put the messages of one call together.

    Args:
        bytes_max: of one.

    Attributes:
        partial: what is there of one that is not whole.
    """

    __slots__ = ("_bytes_max", "partial")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.partial = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Give the messages that are whole.

        Raises:
            BadMessage: one is not to be had.
        """
        if not self.partial:
            if len(data) >= PREFIX.size:
                length = self._length(data, 0)
                if PREFIX.size + length == len(data):
                    return [data[PREFIX.size :]]
            whole: bytes | bytearray = data
        else:
            self.partial += data
            whole = self.partial
        found, at, size = [], 0, len(whole)
        with memoryview(whole) as view:
            while size - at >= PREFIX.size:
                start = at + PREFIX.size
                end = start + self._length(whole, at)
                if end > size:
                    break
                found.append(bytes(view[start:end]))
                at = end
        if whole is self.partial:
            del self.partial[:at]
        else:
            self.partial += data[at:]
        return found

    def _length(self, data: bytes | bytearray, at: int) -> int:
        flag, length = PREFIX.unpack_from(data, at)
        if flag == 1:
            raise BadMessage(Status.UNIMPLEMENTED, "messages are taken uncompressed")
        if flag:
            raise BadMessage(Status.INTERNAL, "no message")
        if length > self._bytes_max:
            raise BadMessage(
                Status.RESOURCE_EXHAUSTED, f"a message is over {self._bytes_max} bytes"
            )
        return int(length)

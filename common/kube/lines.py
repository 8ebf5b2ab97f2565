"""Put the pieces of a watch together to lines. Pure."""

from __future__ import annotations

from kvatlas.common.errors import KubernetesUnavailable


class Lines:
    """Take pieces, give whole lines; the rest waits for its end.

    Args:
        bytes_max: of a line.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def add(self, piece: bytes) -> list[bytes]:
        """Add a piece; give the lines that end in it, without those that are empty.

        Raises:
            KubernetesUnavailable: a line is too long.
        """
        ended, newline, rest = piece.rpartition(b"\n")
        lines = []
        if newline:
            lines = [line for line in (self._rest + ended).split(b"\n") if line]
            self._rest = bytearray()
        self._rest += rest
        if len(self._rest) > self._bytes_max or any(len(each) > self._bytes_max for each in lines):
            raise KubernetesUnavailable("too_large", f"an event of over {self._bytes_max} bytes")
        return [bytes(line) for line in lines]

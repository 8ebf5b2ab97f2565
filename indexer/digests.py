"""Digests of the newest batches of one endpoint, by sequence. Pure."""

from __future__ import annotations

from typing import Final

DIGEST_BYTES: Final = 16


class Digests:
    """A ring of digests of batches that follow one another.

    16 bytes each; as a dict they took over 200, which was 3 MB per endpoint.

    Args:
        kept: the newest ones that are kept, at least 1.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._ring = bytearray()
        self._first = self._next = 0

    def __setitem__(self, seq: int, digest: bytes) -> None:
        if seq != self._next:
            self.clear()
            self._first = seq
        self._next = seq + 1
        ring, place = self._ring, seq % self._kept * DIGEST_BYTES
        if place > len(ring):
            # It grows as it is filled: an endpoint that sends little needs little.
            ring.extend(bytes(place - len(ring)))
        ring[place : place + DIGEST_BYTES] = digest

    def __contains__(self, seq: int) -> bool:
        return max(self._first, self._next - self._kept) <= seq < self._next

    def get(self, seq: int) -> bytes | None:
        """Give the digest of a batch, None where it is not kept."""
        if seq not in self:
            return None
        place = seq % self._kept * DIGEST_BYTES
        return bytes(self._ring[place : place + DIGEST_BYTES])

    def clear(self) -> None:
        """Forget all of them."""
        self._ring.clear()
        self._first = self._next = 0

"""Consistent hashing with bounded load, as KubeAI's PrefixHash. Pure.

Source: KubeAI docs, "Load balancing" (CHWBL): 256 points per endpoint, load at most 125 % of the
mean.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from xxhash import xxh3_64_intdigest

POINTS = 256
LOAD_FACTOR = 1.25


class Ring:
    """Points of all endpoints on a circle."""

    def __init__(self, endpoints: Sequence[str], points: int = POINTS) -> None:
        self._points = sorted(
            (xxh3_64_intdigest(f"{name}#{number}".encode()), name)
            for name in endpoints
            for number in range(points)
        )
        self._count = len(endpoints)

    def choose(self, key: bytes, loads: Mapping[str, int]) -> str:
        """Give the first endpoint after the key that has room.

        Args:
            key: what is hashed.
            loads: requests in flight, by endpoint; this one not yet among them.
        """
        most = math.ceil(LOAD_FACTOR * (sum(loads.values()) + 1) / self._count)
        start = bisect_left(self._points, (xxh3_64_intdigest(key), ""))
        for step in range(len(self._points)):
            name = self._points[(start + step) % len(self._points)][1]
            if loads.get(name, 0) < most:
                return name
        raise AssertionError("the mean is never above 125 % of itself")

"""Sketches of chains, and what endpoints are about to have cached. Pure.

A decision tells other routers some hashes of the chain that it sends, not all: a prefix that two
prompts share is known again to within a step of the sketch, and never taken for longer than it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName


class Sketch(NamedTuple):
    """Some of the hashes of a chain, evenly spaced, from which its prefixes are known again.

    Attributes:
        root: hash of its first block; equal prefixes begin with the same.
        hashes: of every n-th block behind the match, and of the last one.
    """

    root: BlockHash
    hashes: tuple[BlockHash, ...]


def sketch_of(chain: Sequence[BlockHash], match_blocks: int) -> Sketch | None:
    """Sketch what an endpoint with a match will have cached when it has computed a chain.

    Args:
        chain: hashes of the full blocks of a prompt.
        match_blocks: how many of them it has.

    Returns:
        At most SKETCH_HASHES_MAX hashes; None where nothing new is computed.
    """
    new = len(chain) - match_blocks
    if new <= 0:
        return None
    step = -(-new // limits.SKETCH_HASHES_MAX)
    hashes = tuple(chain[match_blocks + step - 1 :: step])
    return Sketch(chain[0], hashes if new % step == 0 else (*hashes, chain[-1]))


@dataclass(slots=True, eq=False)
class _Group:
    """What is predicted of chains that begin with one block.

    Attributes:
        endpoints: how often each is predicted to hold such a chain.
        points: alike, by block of their sketches.
    """

    endpoints: dict[EndpointName, int] = field(default_factory=dict)
    points: dict[BlockHash, dict[EndpointName, int]] = field(default_factory=dict)


class Predictions:
    """What endpoints are about to have cached, by the first block of its chain."""

    def __init__(self) -> None:
        self._groups: dict[BlockHash, _Group] = {}
        self._due: deque[tuple[float, Sketch, EndpointName]] = deque()

    def match(self, chain: Sequence[BlockHash], now_s: float) -> Mapping[EndpointName, int]:
        """Find how many leading blocks of a chain are predicted, per endpoint."""
        while self._due and self._due[0][0] <= now_s:
            _, sketch, endpoint = self._due.popleft()
            self.remove(sketch, endpoint)
        group = self._groups.get(chain[0]) if chain else None
        if group is None:
            return {}
        found: dict[EndpointName, int] = {}
        points = group.points
        for blocks in reversed([i for i, block in enumerate(chain, 1) if block in points]):
            for endpoint in points[chain[blocks - 1]]:
                found.setdefault(endpoint, blocks)
            if len(found) == len(group.endpoints):
                break
        return found

    def share(self, sketch: Sketch, endpoint: EndpointName) -> float:
        """Tell how much of what a sketch stands for an endpoint is about to have anyway, 0 to 1."""
        group = self._groups.get(sketch.root)
        if group is None or endpoint not in group.endpoints:
            return 0.0
        known = 0
        for block in sketch.hashes:
            if endpoint not in group.points.get(block, ()):
                break
            known += 1
        return known / len(sketch.hashes)

    def add(self, sketch: Sketch, endpoint: EndpointName) -> None:
        """Predict a chain; as often as that it must be taken back."""
        group = self._groups.get(sketch.root)
        if group is None:
            group = self._groups[sketch.root] = _Group()
        group.endpoints[endpoint] = group.endpoints.get(endpoint, 0) + 1
        points = group.points
        for block in sketch.hashes:
            counts = points.get(block)
            if counts is None:
                points[block] = {endpoint: 1}
            else:
                counts[endpoint] = counts.get(endpoint, 0) + 1

    def expire(self, sketch: Sketch, endpoint: EndpointName, due_s: float) -> None:
        """Take a prediction back when its time has come, and that of those told of before it."""
        self._due.append((due_s, sketch, endpoint))

    def remove(self, sketch: Sketch, endpoint: EndpointName) -> None:
        """Take a prediction back."""
        group = self._groups[sketch.root]
        _less(group.endpoints, endpoint)
        for block in sketch.hashes:
            counts = group.points[block]
            _less(counts, endpoint)
            if not counts:
                del group.points[block]
        if not group.endpoints:
            del self._groups[sketch.root]


def _less(counts: dict[EndpointName, int], endpoint: EndpointName) -> None:
    """Count one less, and nothing at all at nought."""
    left = counts[endpoint] - 1
    if left:
        counts[endpoint] = left
    else:
        del counts[endpoint]

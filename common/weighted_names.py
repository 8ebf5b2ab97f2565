"""Names among which one is drawn, each with its share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Self


@dataclass(frozen=True, slots=True)
class WeightedNames:
    """Names to choose from, each with the upper end of its part of the draws."""

    names: tuple[str, ...]
    ends: tuple[float, ...]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Self:
        """Give each name its share; weights are above 0, and there is at least one."""
        whole = sum(weights.values())
        ends = tuple(end / whole for end in accumulate(weights.values()))
        return cls(tuple(weights), ends)

    def drawn(self, draw: float) -> str:
        """Give the name that a draw, at least 0 and below 1, falls on."""
        at = next((i for i, end in enumerate(self.ends) if draw < end), len(self.ends) - 1)
        return self.names[at]

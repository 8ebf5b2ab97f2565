"""Endpoints that are there for prompts of some length, as their labels say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import Switch, takes_parameters

LABEL: Final = "llm-d.ai/context-length-range"
IN_RANGE: Final = 0.3
"""What an endpoint whose range holds the prompt scores more than, and any other less."""
UNLABELLED: Final = 0.5
HALF_WIDTH_TOKENS: Final = 8_192.0
"""Width of a range that scores half of what is above IN_RANGE."""

Range = tuple[int, int]


@takes_parameters
@dataclass(frozen=True, slots=True)
class ContextLengthAware:
    """Prefer endpoints whose label names a range that holds the prompt, the tighter the better.

    A scorer, and a filter as well where it is told so.

    Attributes:
        label: whose value is `min-max` in tokens, or several of them with commas between.
        enable_filtering: leave out those whose ranges do not hold the prompt.
    """

    label: Annotated[str, Field(min_length=1)] = LABEL
    enable_filtering: Switch = False

    @property
    def is_hard(self) -> bool:
        """Tell that who is left out must not get the request."""
        return self.enable_filtering

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 0.5 where there is no label or none that can be read."""
        tokens = work.prompt_tokens
        return [_score(tokens, self._ranges(each)) for each in candidates]

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give the positions of those without a label or with a range that holds the prompt."""
        if not self.enable_filtering:
            return range(len(candidates))
        tokens = work.prompt_tokens
        return [
            i
            for i, each in enumerate(candidates)
            if not (ranges := self._ranges(each))
            or any(low <= tokens <= top for low, top in ranges)
        ]

    def _ranges(self, candidate: Candidate) -> tuple[Range, ...]:
        return ranges_of(candidate.labels.get(self.label, ""))


@lru_cache(maxsize=1_024)
def ranges_of(text: str) -> tuple[Range, ...]:
    """Read `min-max[,min-max...]`; nothing where any part of it cannot be read."""
    ranges = []
    for part in text.split(","):
        low, _, top = part.strip().partition("-")
        if not (low.isascii() and low.isdigit() and top.isascii() and top.isdigit()):
            return ()
        if int(low) > int(top):
            return ()
        ranges.append((int(low), int(top)))
    return tuple(ranges)


def _score(tokens: int, ranges: Sequence[Range]) -> float:
    return max((_range_score(tokens, *each) for each in ranges), default=UNLABELLED)


def _range_score(tokens: int, low: int, top: int) -> float:
    if low <= tokens <= top:
        return IN_RANGE + (1.0 - IN_RANGE) / (1.0 + (top - low) / HALF_WIDTH_TOKENS)
    # How near the prompt is to the range: below 1, since it is outside.
    return IN_RANGE * (tokens / low if tokens < low else top / tokens)

"""The four tiny interfaces of scheduling, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvatlas.common.ids import EndpointName

Draw = Callable[[int], int]
"""Settle a tie of n: a number in [0, n)."""


class Load(Protocol):
    """What is known of an endpoint's work; read once per decision, never written here."""

    @property
    def healthy(self) -> bool:
        """Tell whether it has answered lately."""

    @property
    def requests(self) -> int:
        """Count this router's own requests there, exactly."""

    @property
    def pending_tokens(self) -> int:
        """Sum the uncached prompt tokens of own requests there that await their first byte."""

    @property
    def others_running(self) -> int:
        """Estimate requests of others that run there; up to one scrape interval old."""

    @property
    def others_waiting(self) -> int:
        """Estimate requests of others that have been queueing there over two scrapes."""

    @property
    def kv_usage(self) -> float:
        """Give the share of its cache that running requests hold, in [0, 1]; may be old."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint that could serve the request.

    Attributes:
        match_tokens: leading prompt tokens that it holds, counted by the weight of their tier.
        load: its live state.
    """

    endpoint: EndpointName
    match_tokens: int
    load: Load


@dataclass(frozen=True, slots=True)
class Work:
    """What the request asks of an engine.

    Attributes:
        prompt_tokens: counted, or estimated from the body's size where it is not tokenized.
    """

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """How good a candidate is.

    Attributes:
        value: in [0, 1], 1 is best.
        terms: what it is made of; names of terms in milliseconds end in `_ms`.
    """

    value: float
    terms: Mapping[str, float]


class Filter(Protocol):
    """Leave out candidates that should not serve the request."""

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give the positions of the candidates that stay, in order."""


class Scorer(Protocol):
    """Judge candidates by one concern."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Score]:
        """Give one score per candidate."""


class Picker(Protocol):
    """Choose by the scores."""

    def order(self, scores: Sequence[float], draw: Draw) -> list[int]:
        """Give the positions of all scores, the chosen one first, then whom to try next."""

"""The four tiny interfaces of scheduling, and what passes between them.

A plugin is any object with the methods of one of them. `Explains` and `Notes` are for those that
have more to say or to remember.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kvatlas.common.gauges import Adapters
from kvatlas.common.ids import EndpointName
from kvatlas.common.records import record


class Chance(Protocol):
    """Where chance comes from; `random.Random` fits."""

    def random(self) -> float:
        """Draw a number in [0, 1)."""

    def randrange(self, stop: int, /) -> int:
        """Draw a whole number in [0, stop)."""


class Load(Protocol):
    """What is known of an endpoint's work; read once per decision, never written here.

    Times are in seconds of the clock that `Work.now_s` is read from.
    """

    @property
    def healthy(self) -> bool:
        """Tell whether it has answered lately."""

    @property
    def requests(self) -> int:
        """Count the requests that all routers have under way there."""

    @property
    def awaiting(self) -> int:
        """Count those of them whose prompts are not known to be computed."""

    @property
    def queued_tokens(self) -> int:
        """Sum the uncached prompt tokens of those that await their first byte."""

    @property
    def others_running(self) -> int:
        """Estimate requests of strangers that run there; as old as the gauges."""

    @property
    def others_waiting(self) -> int:
        """Estimate requests of strangers that have been queueing there over two scrapes."""

    @property
    def waiting(self) -> int:
        """Count the requests that the engine itself says are waiting; as old as the gauges."""

    @property
    def kv_usage(self) -> float:
        """Give the share of its cache that running requests hold, in [0, 1]; may be old."""

    @property
    def token_s(self) -> float:
        """Give the seconds that it takes to prefill a token."""

    @property
    def base_s(self) -> float:
        """Give the seconds that a request takes there beside its tokens."""

    @property
    def adapters(self) -> Adapters:
        """Tell which LoRA adapters it has in use; as old as the gauges."""

    def wait_s(self, now_s: float) -> float:
        """Estimate how long a prompt would wait until its turn."""

    def gauges_age_s(self, now_s: float) -> float:
        """Tell how old the gauges are; infinity where there are none."""


@dataclass(slots=True)
class Candidate:
    """One endpoint that could serve the request; not to be changed.

    Attributes:
        match_tokens: leading prompt tokens that it holds, counted by the weight of their tier.
        predicted_tokens: that it will hold when its turn comes, those at least.
        load: its live state.
        labels: of the endpoint, from the configuration.
    """

    endpoint: EndpointName
    match_tokens: int
    predicted_tokens: int
    load: Load
    labels: Mapping[str, str] = field(default_factory=dict)


@record
class Work:
    """What the request asks of an engine.

    Attributes:
        prompt_tokens: counted, or estimated from the body's size where it is not tokenized.
        now_s: the moment of the decision.
        turn: how many decisions were made before; for who takes turns.
        adapter: the LoRA adapter that it names.
        session: the endpoint that its conversation was on, if that is known.
        trust: how much of the fleet's load is known, from 0 (nothing of others) to 1.
        pressure: requests that await their first byte per endpoint, smoothed.
        is_matched: whether it is known who holds what of the prompt.
        draw: drawn from what follows the longest match of the prompt: routers that decide at the
            same moment, not knowing of each other, settle ties of the same prefix alike. None where
            it is unknown.
        named: addresses that the request itself names, `host` or `host:port`; for tests.
    """

    prompt_tokens: int
    now_s: float = 0.0
    turn: int = 0
    adapter: str | None = None
    session: EndpointName | None = None
    trust: float = 1.0
    pressure: float = 0.0
    is_matched: bool = True
    draw: int | None = None
    named: frozenset[str] = frozenset()


class Filter(Protocol):
    """Leave out candidates that should not serve the request.

    One with a true attribute `is_hard` leaves out those that must not: they are not even tried
    when all others fail, and where it leaves nobody, the request is refused. Of a filter without
    it, those left out are tried last, and where it leaves nobody, it does not count.
    """

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Give the positions of the candidates that stay, in order."""


class Scorer(Protocol):
    """Judge candidates by one concern."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Give one score per candidate, in [0, 1], 1 is best; or nothing: no opinion this time."""


@runtime_checkable
class Explains(Protocol):
    """A scorer that can tell what its scores are made of."""

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[Mapping[str, float]]:
        """Give one set of terms per candidate; names of terms in milliseconds end in `_ms`."""


@runtime_checkable
class Notes(Protocol):
    """A plugin that is told of each decision that a request follows."""

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:
        """Take note of the position of the chosen one."""


class Picker(Protocol):
    """Choose by the scores."""

    def order(self, work: Work, scores: Sequence[float], chance: Chance) -> Sequence[int]:
        """Give the positions of all scores, the chosen one first, then whom to try next."""


def is_hard(plugin: Filter) -> bool:
    """Tell whether those that a filter leaves out must not get the request."""
    return bool(getattr(plugin, "is_hard", False))

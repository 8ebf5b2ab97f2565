"""What a policy is, what it sees, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from kvatlas.planner.engine import Served
from kvatlas.planner.index import Blocks
from kvatlas.planner.jobs import Job
from kvatlas.router.flights import Launch


class Gauges(NamedTuple):
    """What a scrape of an engine's metrics says."""

    running: int
    waiting: int
    usage: float


@dataclass(slots=True)
class Sight:
    """What a router sees when it decides.

    Attributes:
        blocks: leading blocks of the prompt in the index, by endpoint.
        gauges: of the last scrape, by endpoint; empty where no policy asks for them.
        scraped_s: when that was.
        heard_s: up to when everything is known of all flights that are shared.
    """

    now_s: float
    blocks: Blocks
    gauges: Sequence[Gauges]
    scraped_s: float
    heard_s: float


class Choice(NamedTuple):
    """A decision.

    Attributes:
        uncached_tokens: prompt tokens that the endpoint is believed to have to compute.
        launch: what the product would tell other routers.
    """

    endpoint: int
    uncached_tokens: int
    launch: Launch | None = None


class Policy(Protocol):
    """One router's way to choose, and what it remembers.

    Attributes:
        shares: whether routers tell each other of their flights; without, each knows its own.
        scrapes: whether it looks at gauges.
    """

    shares: ClassVar[bool]
    scrapes: ClassVar[bool]

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Choose an endpoint."""

    def launched(self, router: int, served: Served, now_s: float) -> None:
        """Hear of a decision of a router, at once of its own."""

    def began(self, router: int, served: Served, now_s: float) -> None:
        """Hear of a first token."""

    def ended(self, router: int, served: Served, now_s: float) -> None:
        """Hear of an end."""

"""Candidates and chance as tests of scheduling want them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kvatlas.common.ids import EndpointName
from kvatlas.router.scheduling import Adapters, Candidate, Profile
from kvatlas.router.scheduling.build import Builder, Find
from kvatlas.router.scheduling.guard import Fault

TOKEN_S = 0.001
"""Seconds per token: one token is one millisecond."""

NO_ADAPTERS = Adapters()


@dataclass(frozen=True, slots=True)
class Busy:
    """A load that stands still."""

    healthy: bool = True
    requests: int = 0
    awaiting: int = 0
    queued_tokens: int = 0
    others_running: int = 0
    others_waiting: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    token_s: float = TOKEN_S
    base_s: float = 0.0
    adapters: Adapters = NO_ADAPTERS
    gauges_s: float = math.inf

    def wait_s(self, now_s: float) -> float:  # noqa: ARG002 - interface
        """Give the time that what is queued takes."""
        return self.queued_tokens * self.token_s

    def gauges_age_s(self, now_s: float) -> float:  # noqa: ARG002 - interface
        """Give an age."""
        return self.gauges_s


def candidate(
    name: str = "e0",
    match: int = 0,
    load: Busy | None = None,
    *,
    predicted: int = 0,
    labels: dict[str, str] | None = None,
) -> Candidate:
    """Make a candidate."""
    return Candidate(EndpointName(name), match, max(match, predicted), load or Busy(), labels or {})


def candidates(*known: tuple[int, Busy]) -> list[Candidate]:
    """Make candidates `e0`, `e1`, ... of (match tokens, load)."""
    return [candidate(f"e{i}", *each) for i, each in enumerate(known)]


def loads(*known: Busy) -> list[Candidate]:
    """Make candidates that match nothing."""
    return candidates(*((0, load) for load in known))


@dataclass(slots=True)
class Fixed:
    """Chance that is none: the same draw each time.

    Attributes:
        share: in [0, 1): of the way to the last possibility.
    """

    share: float = 0.0

    def random(self) -> float:
        """Give the fixed share."""
        return self.share

    def randrange(self, stop: int, /) -> int:
        """Give the number at the fixed share of the way."""
        return int(self.share * stop)


FIRST = Fixed(0.0)
LAST = Fixed(math.nextafter(1.0, 0.0))


@dataclass(slots=True)
class Faults:
    """Notes what plugins do wrong."""

    told: list[tuple[str, Fault, str | None]] = field(default_factory=list)

    def report(self, plugin: str, fault: Fault, error: Exception | None) -> None:
        """Note a fault."""
        self.told.append((plugin, fault, None if error is None else type(error).__name__))


def built(
    *types: str | dict[str, object], find: Find = lambda _kind: None, faults: Faults | None = None
) -> Profile:
    """Build a profile of plugins, each a type or an entry of `plugins`; weights are 1."""
    entries = [{"type": each} if isinstance(each, str) else each for each in types]
    refs = [{"pluginRef": entry.get("name", entry["type"])} for entry in entries]
    config = {"plugins": entries, "schedulingProfiles": [{"name": "default", "plugins": refs}]}
    return Builder(find, (faults or Faults()).report, has_sessions=True).build(config)

"""The product's own way to choose: its board, its profile, its candidates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from typing import ClassVar

from kvatlas.common import limits
from kvatlas.common.ids import BlockHash, EndpointName
from kvatlas.planner.engine import Served
from kvatlas.planner.jobs import Job
from kvatlas.planner.peers import mixed
from kvatlas.planner.policy import Choice, Gauges, Sight
from kvatlas.router.flights import Board, Launch, RouterId, Stand
from kvatlas.router.predictions import sketch_of
from kvatlas.router.scheduling import Adapters, Candidate, Chance, Profile, Work
from kvatlas.router.stand_load import StandLoad

_NO_ADAPTERS = Adapters()
_NO_GAUGES = Gauges(0, 0, 0.0)
_RUN_BITS = 24
"""Blocks of one run that get hashes of their own; above a million tokens at any block size."""


class SimulatedLoad(StandLoad):
    """What a router knows of an endpoint."""

    __slots__ = (
        "_waiting_before",
        "gauges",
        "others_running",
        "others_waiting",
        "scraped_s",
        "stand",
    )

    healthy = True
    adapters = _NO_ADAPTERS

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.gauges = _NO_GAUGES
        self.scraped_s = float("-inf")
        self.others_running = self.others_waiting = self._waiting_before = 0

    def observe(self, gauges: Gauges, now_s: float) -> None:
        """Take over a scrape, as the router does (`router/endpoint.py`)."""
        self.gauges, self.scraped_s = gauges, now_s
        own = self.stand.requests
        self.others_running = max(0, gauges.running - own)
        waiting = max(0, gauges.waiting - max(0, own - gauges.running))
        self.others_waiting = min(waiting, self._waiting_before)
        self._waiting_before = waiting

    @property
    def waiting(self) -> int:
        """Give the engine's own count."""
        return self.gauges.waiting

    @property
    def kv_usage(self) -> float:
        """Give the share of its cache that running jobs hold."""
        return self.gauges.usage

    def gauges_age_s(self, now_s: float) -> float:
        """Tell how old the gauges are."""
        return now_s - self.scraped_s


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How a router takes what it cannot know.

    Attributes:
        routers: that there are.
        trust: how much of the fleet's load is known.
        copies: whether it takes the others to do as it does, as it does while Redis is away.
    """

    routers: int = 1
    trust: float = 1.0
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """What all routers of a fleet are set up with, but for their profiles.

    Attributes:
        names: of the endpoints.
        profile: a router's own.
        believed_tokens_per_s: what it believes of engines at first.
    """

    names: Sequence[EndpointName]
    profile: Profile
    block_size: int
    believed_tokens_per_s: float
    knowledge: Knowledge = Knowledge()


class Product:
    """One router as the product has it.

    Args:
        me: which router it is.
        chance: settles ties.
    """

    shares: ClassVar[bool] = True
    scrapes: ClassVar[bool] = True

    def __init__(self, setup: Setup, me: int, chance: Chance) -> None:
        self._setup = setup
        self._chance = chance
        self.board = Board(_router(me), setup.believed_tokens_per_s)
        self._loads = [SimulatedLoad(self.board.stand(name)) for name in setup.names]
        self._cold = [
            Candidate(name, 0, 0, load) for name, load in zip(setup.names, self._loads, strict=True)
        ]
        self._places = {name: at for at, name in enumerate(setup.names)}
        self._turn = 0
        self._scraped_s = float("-inf")
        if setup.knowledge.copies:
            for router in range(setup.knowledge.routers):
                self.board.heard(_router(router), 0.0)
            self.board.go_blind()

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Let the profile choose."""
        self.board.learn(sight.heard_s)
        self._look(sight)
        chain = _chain(job)
        predicted = self.board.predicted(chain, sight.now_s)
        candidates = self._candidates(job, sight, predicted)
        work = Work(
            job.prompt_tokens,
            sight.now_s,
            turn=self._turn,
            trust=self._setup.knowledge.trust,
            pressure=self.board.pressure(len(candidates), sight.now_s),
            draw=_draw(chain, max(sight.blocks.values(), default=0)),
        )
        self._turn += 1
        at = self._setup.profile.run(work, candidates, self._chance).order[0]
        self._setup.profile.note(work, candidates, at)
        chosen = candidates[at]
        matched = max(chosen.match_tokens, chosen.predicted_tokens)
        tokens = job.prompt_tokens - matched
        sketch = sketch_of(chain, matched // self._setup.block_size)
        return Choice(at, tokens, Launch(job.number, chosen.endpoint, tokens, sketch=sketch))

    def launched(self, router: int, served: Served, now_s: float) -> None:
        """Put a flight on the board."""
        assert served.launch is not None  # noqa: S101 - this policy made it
        self.board.launched(_router(router), served.launch, now_s)

    def began(self, router: int, served: Served, now_s: float) -> None:
        """Note its first byte."""
        self.board.began(_router(router), served.job.number, now_s)

    def ended(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Take it off."""
        name = self._setup.names[served.endpoint]
        self.board.ended(_router(router), served.job.number, name)

    def _look(self, sight: Sight) -> None:
        if sight.scraped_s == self._scraped_s:
            return
        self._scraped_s = sight.scraped_s
        for load, gauges in zip(self._loads, sight.gauges, strict=True):
            load.observe(gauges, sight.scraped_s)

    def _candidates(
        self, job: Job, sight: Sight, predicted: Mapping[EndpointName, int]
    ) -> list[Candidate]:
        """Say who holds what; most of a large fleet hold nothing and are the same each time."""
        size, places = self._setup.block_size, self._places
        most = job.usable_blocks
        held = {at: min(blocks, most) for at, blocks in sight.blocks.items()}
        coming = {places[name]: min(blocks, most) for name, blocks in predicted.items()}
        candidates = self._cold.copy()
        for at in held.keys() | coming.keys():
            cold, has = candidates[at], held.get(at, 0)
            soon = max(has, coming.get(at, 0))
            candidates[at] = Candidate(cold.endpoint, has * size, soon * size, cold.load)
        return candidates


def _router(number: int) -> RouterId:
    return RouterId(f"router-{number}")


def _draw(chain: Sequence[BlockHash], matched: int) -> int | None:
    """Draw from what follows the longest match, as the router does."""
    return mixed(chain[: matched + limits.DRAW_BLOCKS][-1]) if chain else None


def _chain(job: Job) -> list[BlockHash]:
    """Write the chain of a prompt out, with a hash for each block."""
    return list(
        joined.from_iterable(
            map(BlockHash, range(base := run.number << _RUN_BITS, base + run.length))
            for run in job.runs
        )
    )

"""One engine as the router knows it: its ranks, their live load, and what it has told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median
from typing import Literal
from urllib.parse import urlsplit

from kvatlas.common import limits
from kvatlas.common.gauges import NO_GAUGES, Adapters, EngineGauges, Sample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.tls_engines import PLAIN, EngineTls
from kvatlas.router.ejection import Standing
from kvatlas.router.flights import Stand
from kvatlas.router.recent_counts import RecentCounts
from kvatlas.router.stand_load import StandLoad, strangers
from kvatlas.router.usage_habit import UsageHabit

TokenizerVerdict = Literal["unknown", "unasked", "agrees", "differs"]
"""Whether the engine's tokens are ours: not asked yet, it cannot be asked, yes, no."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine has told about itself since it joined.

    Attributes:
        version: of vLLM, such as (0, 32, 0); None where it does not tell.
        tokenizer: whether its `/tokenize` gives our token ids.
        adapters: names of the LoRA adapters that it has loaded.
        max_model_len: tokens that it takes at most; None where it does not tell.
        serves: whether it lists the model that it is configured for; None where it does not tell.
        asked: whether it has been asked for its models in this life, with or without an answer.
    """

    version: tuple[int, ...] | None = None
    tokenizer: TokenizerVerdict = "unknown"
    adapters: frozenset[str] = frozenset()
    max_model_len: int | None = None
    serves: bool | None = None
    asked: bool = False


@lru_cache(maxsize=limits.ENDPOINTS_MAX)
def _address(url: str) -> str:
    return urlsplit(url).netloc


@dataclass(slots=True, eq=False)
class Endpoint(StandLoad):
    """One routable engine rank, with its live load.

    Attributes:
        rank: of data parallelism.
        ranks: how many the engine has; with more than one it is told by a header which.
        labels: from the configuration.
        tls: how its engine is spoken to.
        block_size: configured or learned from the engine, None before.
        stand: how it stands with all routers together.
        gauges: as of the newest look, ours or an indexer's.
        looked_s: when that was; -inf before the first.
        others_running: requests of strangers that ran there then.
        others_waiting: requests of strangers that have been waiting over two looks.
        standing: its health among its model's endpoints.
        failures: looks of ours and requests that failed since the last look that did not.
        asked: whether it has been asked for its metrics, with or without an answer.
        is_odd: whether its block size was found to be another than configured.
        facts: what it has told about itself.
        usage: how it reports usage, learned from its answers.
    """

    name: EndpointName
    model: ModelName
    url: str
    rank: int
    shard: Shard
    api_key: str | None = field(repr=False)
    block_size: int | None
    stand: Stand
    ranks: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    tls: EngineTls = PLAIN
    gauges: EngineGauges = NO_GAUGES
    looked_s: float = float("-inf")
    others_running: int = 0
    others_waiting: int = 0
    standing: Standing = field(default_factory=Standing)
    failures: int = 0
    asked: bool = False
    is_odd: bool = False
    facts: EngineFacts = EngineFacts()
    usage: UsageHabit = field(default_factory=UsageHabit)
    _waiting_before: int = 0
    _counts: RecentCounts = field(default_factory=RecentCounts)

    @property
    def address(self) -> str:
        """Give host:port, as gateways name it; ranks of one engine share it."""
        return _address(self.url)

    @property
    def host(self) -> str:
        """Give the host alone, an IPv6 address in brackets."""
        return self.address.rpartition(":")[0]

    @property
    def healthy(self) -> bool:
        """Tell whether requests should go there."""
        return self.standing.takes

    @property
    def asked_rank(self) -> int | None:
        """Give the rank that a request has to name: without it an engine of several chooses one."""
        return self.rank if self.ranks > 1 else None

    @property
    def waiting(self) -> int:
        """Count the requests that the engine itself says are waiting; as old as the gauges."""
        return int(self.gauges.waiting)

    @property
    def kv_usage(self) -> float:
        """Give the share of its cache that running requests hold, in [0, 1]; may be old."""
        return self.gauges.kv_usage

    @property
    def adapters(self) -> Adapters:
        """Tell which LoRA adapters it has in use; as old as the gauges."""
        return self.gauges.adapters

    def gauges_age_s(self, now_s: float) -> float:
        """Tell how old the gauges are; infinity where there are none."""
        return now_s - self.looked_s

    def note_requests(self, now_s: float) -> None:
        """Note how many requests our routers have under way there, for looks that come later."""
        self._counts.note(now_s, self.stand.requests)

    def ours_at(self, looked_s: float) -> int:
        """Tell how many requests our routers had under way at the moment of a look, at most."""
        slack_s = limits.REQUESTS_NOTED_S
        return self._counts.most(looked_s - slack_s, looked_s + slack_s)

    def observe(self, gauges: EngineGauges, looked_s: float) -> None:
        """Take over a look; our routers' requests are in its numbers and are taken out."""
        running, waiting = int(gauges.running), int(gauges.waiting)
        self.others_running, waiting = strangers(running, waiting, self.ours_at(looked_s))
        self.others_waiting = min(waiting, self._waiting_before)
        self._waiting_before = waiting
        self.gauges, self.looked_s = gauges, looked_s
        self.asked = True

    def guess_from(self, others: Sequence[Endpoint]) -> None:
        """Take its load for that of others: what was seen of it is too old."""
        self.others_running = int(median([each.others_running for each in others]))
        self.others_waiting = self._waiting_before = 0
        self.gauges = replace(
            self.gauges,
            waiting=median([each.gauges.waiting for each in others]),
            kv_usage=median([each.gauges.kv_usage for each in others]),
        )

    def answered(self) -> None:
        """Note that it answered us."""
        self.failures = 0

    def failed(self) -> None:
        """Note that it did not answer."""
        self.failures += 1
        self.asked = True
        self.others_running = self.others_waiting = self._waiting_before = 0
        # Who comes back may be another build with other options.
        self.usage = UsageHabit()

    def distrust(self) -> None:
        """Note that its token ids were found not to be ours."""
        self.facts = replace(self.facts, tokenizer="differs")


@dataclass(slots=True, eq=False)
class Engine:
    """What all ranks behind one address have in common.

    Attributes:
        tls: how it is spoken to.
        endpoints: one per rank.
        seen_s: when it was looked at last, by whomever.
        lives: how often it was seen to be there anew: at first, after a restart, or after it had
            been away and does not tell when its process began.
        joined: set whenever `lives` grows.
    """

    url: str
    model: ModelName
    api_key: str | None = field(repr=False)
    tls: EngineTls = PLAIN
    endpoints: list[Endpoint] = field(default_factory=list)
    seen_s: float = float("-inf")
    lives: int = 0
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    _process_start: str | None = None
    _was_away: bool = True

    @property
    def is_away(self) -> bool:
        """Tell whether its last page of metrics could not be had."""
        return self._was_away

    @property
    def facts(self) -> EngineFacts:
        """Give what it has told; the same for all its ranks."""
        return self.endpoints[0].facts

    def seen(self, sample: Sample, seen_s: float) -> None:
        """Note a look at its metrics page; looks come in the order of their times."""
        self.seen_s = seen_s
        if not sample.is_up:
            self._was_away = True
            return
        start = sample.start
        is_new = start != self._process_start if start is not None else self._was_away
        self._was_away, self._process_start = False, start
        if is_new or self.lives == 0:
            self.lives += 1
            # What was wrong is so until it is asked again, and clients still know its adapters.
            known = self.facts
            verdict: TokenizerVerdict = "differs" if known.tokenizer == "differs" else "unknown"
            self.learn(EngineFacts(tokenizer=verdict, adapters=known.adapters))
            self.joined.set()

    def learn(self, facts: EngineFacts) -> None:
        """Take over what it told."""
        for endpoint in self.endpoints:
            endpoint.facts = facts

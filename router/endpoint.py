"""One engine as the router knows it: its ranks, their live load, and what it has told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.router.flights import Stand
from kvatlas.router.metrics_page import EngineGauges, read_process_start
from kvatlas.router.usage_habit import UsageHabit

FAILURES_UNHEALTHY: Final = 3
"""Failures in a row after which an endpoint is asked last."""

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


@dataclass(slots=True, eq=False)
class Endpoint:
    """One routable engine rank, with its live load.

    Attributes:
        rank: of data parallelism.
        ranks: how many the engine has; with more than one it is told by a header which.
        labels: from the configuration.
        block_size: configured or learned from the engine, None before.
        stand: how it stands with all routers together.
        others_running: requests of strangers that run there, as of the last scrape.
        others_waiting: requests of strangers that have been waiting over two scrapes.
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
    others_running: int = 0
    others_waiting: int = 0
    kv_usage: float = 0.0
    failures: int = 0
    asked: bool = False
    is_odd: bool = False
    facts: EngineFacts = EngineFacts()
    usage: UsageHabit = field(default_factory=UsageHabit)
    _waiting_before: int = 0

    @property
    def healthy(self) -> bool:
        """Tell whether it has answered lately."""
        return self.failures < FAILURES_UNHEALTHY

    @property
    def asked_rank(self) -> int | None:
        """Give the rank that a request has to name: without it an engine of several chooses one."""
        return self.rank if self.ranks > 1 else None

    @property
    def requests(self) -> int:
        """Count the requests that all routers have under way there."""
        return self.stand.requests

    @property
    def awaiting(self) -> int:
        """Count those of them whose prompts are not known to be computed."""
        return self.stand.awaiting

    @property
    def queued_tokens(self) -> int:
        """Sum the uncached prompt tokens of those that await their first byte."""
        return self.stand.tokens

    @property
    def token_s(self) -> float:
        """Give the seconds that it takes to prefill a token."""
        return self.stand.speed.token_s

    @property
    def base_s(self) -> float:
        """Give the seconds that a request takes there beside its tokens."""
        return self.stand.speed.base_s

    def wait_s(self, now_s: float) -> float:
        """Estimate how long a prompt would wait until its turn."""
        return self.stand.wait_s(now_s)

    def observe(self, gauges: EngineGauges) -> None:
        """Take over a scrape; our routers' requests are in its numbers and are taken out."""
        own = self.requests
        running, waiting = int(gauges.running), int(gauges.waiting)
        self.others_running = max(0, running - own)
        others_waiting = max(0, waiting - max(0, own - running))
        self.others_waiting = min(others_waiting, self._waiting_before)
        self._waiting_before = others_waiting
        self.kv_usage = gauges.kv_usage
        self.failures = 0
        self.asked = True

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
        endpoints: one per rank.
        lives: how often it was seen to be there anew: at first, after a restart, or after it had
            been away and does not tell when its process began.
        joined: set whenever `lives` grows.
    """

    url: str
    model: ModelName
    api_key: str | None = field(repr=False)
    endpoints: list[Endpoint] = field(default_factory=list)
    lives: int = 0
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    _process_start: bytes | None = None
    _was_away: bool = True

    @property
    def is_away(self) -> bool:
        """Tell whether its last page of metrics could not be had."""
        return self._was_away

    @property
    def facts(self) -> EngineFacts:
        """Give what it has told; the same for all its ranks."""
        return self.endpoints[0].facts

    def seen(self, page: bytes | None) -> None:
        """Note a look at its metrics page, None where there was no answer."""
        if page is None:
            self._was_away = True
            return
        start = read_process_start(page)
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

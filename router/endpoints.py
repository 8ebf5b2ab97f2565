"""Who is there, how busy they are, and what this router has under way with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import aiohttp

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import Shard, shard_of
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.metrics_page import EngineGauges, read_gauges, read_process_start
from kvatlas.router.served_names import Served, ServedNames
from kvatlas.router.usage_habit import UsageHabit

_LOG = logger("endpoints")

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
class Flight:
    """One request under way with an endpoint."""

    endpoint: Endpoint
    pending_tokens: int

    def began(self) -> None:
        """Note the first byte: its prompt has been computed."""
        self.endpoint.pending_tokens -= self.pending_tokens
        self.pending_tokens = 0


@dataclass(slots=True, eq=False)
class Endpoint:
    """One routable engine rank, with its live load.

    Attributes:
        rank: of data parallelism.
        ranks: how many the engine has; with more than one it is told by a header which.
        block_size: configured or learned from the engine, None before.
        requests: own requests under way, exact.
        pending_tokens: uncached prompt tokens of those that await their first byte.
        others_running: requests of others that run there, as of the last scrape.
        others_waiting: requests of others that have been waiting over two scrapes.
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
    ranks: int = 1
    requests: int = 0
    pending_tokens: int = 0
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

    @contextmanager
    def flight(self, uncached_tokens: int) -> Iterator[Flight]:
        """Count a request in, and out again whatever happens."""
        self.requests += 1
        self.pending_tokens += uncached_tokens
        flight = Flight(self, uncached_tokens)
        try:
            yield flight
        finally:
            flight.began()
            self.requests -= 1

    def observe(self, gauges: EngineGauges) -> None:
        """Take over a scrape; our own requests are in its numbers and are taken out of them."""
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


class Endpoints:
    """All endpoints, by model.

    Args:
        settings: the configuration.
        metrics: told of health and requests in flight.

    Raises:
        ConfigError: a key file cannot be read.
    """

    def __init__(self, settings: Settings, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._interval_s = settings.router.metrics_interval_s
        self._configured = {m.model: m.block_size for m in settings.models}
        self._by_model: dict[ModelName, list[Endpoint]] = {m.model: [] for m in settings.models}
        self.names = ServedNames(settings.models)
        self._engines: dict[str, Engine] = {}
        for endpoint in settings.endpoints:
            self._add(settings, endpoint)

    def of(self, model: ModelName) -> list[Endpoint]:
        """List a model's endpoints."""
        return self._by_model[model]

    def candidates(self, served: Served) -> list[Endpoint]:
        """List the endpoints that a request may go to.

        One that serves another model is not among them, and one that has not been asked what it
        serves only where no other is. Where no engine has loaded a configured adapter, it may
        be one that they load when it is asked for, so all of them can take it.
        """
        fit = [each for each in self._by_model[served.model] if each.facts.serves is not False]
        fit = [each for each in fit if each.facts.asked] or fit
        if served.adapter is None:
            return fit
        having = [each for each in fit if served.adapter in each.facts.adapters]
        if having or not self.names.is_configured(served):
            return having
        return [each for each in fit if each.facts.serves is None] or fit

    def distrusts(self, model: ModelName) -> bool:
        """Tell whether an engine that takes its requests has other token ids than we have."""
        return any(
            each.facts.tokenizer == "differs" and each.facts.serves is not False and each.healthy
            for each in self._by_model[model]
        )

    def engines(self) -> Iterable[Engine]:
        """Go through all engines."""
        return self._engines.values()

    def learn(self, engine: Engine, facts: EngineFacts) -> None:
        """Take over what an engine told of itself."""
        told_adapters = facts.adapters != engine.facts.adapters
        engine.learn(facts)
        if told_adapters:
            self._learn_adapters()

    def note_tokenizer(self, engine: Engine, verdict: TokenizerVerdict) -> None:
        """Take over whether an engine's token ids are ours."""
        engine.learn(replace(engine.facts, tokenizer=verdict))

    def all(self) -> Iterable[Endpoint]:
        """Go through all endpoints."""
        for endpoints in self._by_model.values():
            yield from endpoints

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Scrape every engine for ever, each at its own pace."""
        async with asyncio.TaskGroup() as group:
            for engine in self._engines.values():
                group.create_task(self._watch_engine(session, engine))

    def _add(self, settings: Settings, endpoint: EndpointSettings) -> None:
        model = settings.model_named(endpoint.model)
        key = read_key(endpoint.api_key_file, "endpoints")
        for rank, name in enumerate(endpoint.names()):
            shard = shard_of(model.model, name, model.index_shards)
            added = Endpoint(
                name,
                model.model,
                endpoint.url,
                rank,
                shard,
                key,
                model.block_size,
                ranks=endpoint.data_parallel_size,
            )
            self._by_model[model.model].append(added)
            engine = self._engines.setdefault(endpoint.url, Engine(endpoint.url, model.model, key))
            engine.endpoints.append(added)

    async def _watch_engine(self, session: aiohttp.ClientSession, engine: Engine) -> None:
        while True:
            page = await self._page(session, engine.url, engine.api_key)
            if page is None:
                self._note_failure(engine.endpoints)
            else:
                self._note_page(page, engine.endpoints)
            engine.seen(page)
            # Spread, so that many routers do not ask in step.
            await asyncio.sleep(self._interval_s * random.uniform(0.9, 1.1))  # noqa: S311 - jitter

    async def _page(
        self, session: aiohttp.ClientSession, url: str, key: str | None
    ) -> bytes | None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=limits.METRICS_TIMEOUT_S)
        try:
            async with session.get(
                f"{url}/metrics", headers=headers, timeout=timeout, allow_redirects=False
            ) as reply:
                page = await reply.content.read(limits.METRICS_BYTES_MAX)
                # A page comes in pieces; read(n) gives what is there.
                while len(page) < limits.METRICS_BYTES_MAX and not reply.content.at_eof():
                    page += await reply.content.read(limits.METRICS_BYTES_MAX - len(page))
                # Without a page of metrics it is alive all the same.
                return page if reply.status == 200 else b""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def _learn_adapters(self) -> None:
        self.names.learn(
            {
                model: frozenset().union(*(each.facts.adapters for each in endpoints))
                for model, endpoints in self._by_model.items()
            }
        )

    def _note_failure(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            was_healthy = endpoint.healthy
            endpoint.failed()
            self._note_health(endpoint, was_healthy=was_healthy)

    def _note_page(self, page: bytes, endpoints: list[Endpoint]) -> None:
        ranks = read_gauges(page)
        for endpoint in endpoints:
            was_healthy = endpoint.healthy
            gauges = ranks.get(endpoint.rank, EngineGauges())
            endpoint.observe(gauges)
            self._note_block_size(endpoint, gauges.block_size)
            self._note_health(endpoint, was_healthy=was_healthy)

    def _note_block_size(self, endpoint: Endpoint, found: int | None) -> None:
        if not found or found == endpoint.block_size:
            return
        if self._configured[endpoint.model] is None:
            endpoint.block_size = found
        elif not endpoint.is_odd:
            # Nothing that it caches can match; said once, since it does not change.
            endpoint.is_odd = True
            _LOG.error("endpoint.block_size_differs", endpoint=endpoint.name, found=found)

    def _note_health(self, endpoint: Endpoint, *, was_healthy: bool) -> None:
        self._metrics.healthy.labels(endpoint.name).set(endpoint.healthy)
        self._metrics.in_flight.labels(endpoint.name).set(endpoint.requests)
        if endpoint.healthy != was_healthy:
            event = "endpoint.recovered" if endpoint.healthy else "endpoint.lost"
            _LOG.warning(event, endpoint=endpoint.name)

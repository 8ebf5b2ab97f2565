"""Who is there, how busy they are, and what this router has under way with them."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import aiohttp

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard, shard_of
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.usage_habit import UsageHabit

_LOG = logger("endpoints")

FAILURES_UNHEALTHY: Final = 3
"""Failures in a row after which an endpoint is asked last."""
GAUGES: Final = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "kv_usage",
}
CACHE_INFO: Final = b"vllm:cache_config_info"
_ENGINE: Final = re.compile(rb'[{,]engine="(\d{1,9})"')
_BLOCK_SIZE: Final = re.compile(rb'[{,]block_size="(\d{1,9})"')
_HASH_BLOCK_SIZE: Final = re.compile(rb'[{,]hash_block_size="(\d{1,9})"')


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
    """

    version: tuple[int, ...] | None = None
    tokenizer: TokenizerVerdict = "unknown"
    adapters: frozenset[str] = frozenset()
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """What an engine's metrics page says of one rank."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    block_size: int | None = None


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
        self._by_url: dict[str, list[Endpoint]] = {}
        for endpoint in settings.endpoints:
            self._add(settings, endpoint)

    def of(self, model: ModelName) -> list[Endpoint]:
        """List a model's endpoints."""
        return self._by_model[model]

    def distrusts(self, model: ModelName) -> bool:
        """Tell whether an engine of the model has other token ids than we have."""
        return any(each.facts.tokenizer == "differs" for each in self._by_model[model])

    def all(self) -> Iterable[Endpoint]:
        """Go through all endpoints."""
        for endpoints in self._by_model.values():
            yield from endpoints

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Scrape every engine for ever, each at its own pace."""
        async with asyncio.TaskGroup() as group:
            for url, endpoints in self._by_url.items():
                group.create_task(self._watch_engine(session, url, endpoints))

    def _add(self, settings: Settings, endpoint: EndpointSettings) -> None:
        model = settings.model_named(endpoint.model)
        key = _read_key(endpoint)
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
            self._by_url.setdefault(endpoint.url, []).append(added)

    async def _watch_engine(
        self, session: aiohttp.ClientSession, url: str, endpoints: list[Endpoint]
    ) -> None:
        while True:
            page = await self._page(session, url, endpoints[0].api_key)
            if page is None:
                self._note_failure(endpoints)
            else:
                self._note_page(page, endpoints)
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


def read_gauges(page: bytes) -> Mapping[int, EngineGauges]:
    """Read a page in Prometheus' text format, by rank. Lines that are broken are left out.

    Cost: 75 us for vLLM's 56 KB.
    """
    values: dict[int, dict[str, float]] = {}
    for name, field_name in GAUGES.items():
        for line in _samples(page, name):
            values.setdefault(_rank(line), {})[field_name] = _value(line)
    for line in _samples(page, CACHE_INFO):
        size = _HASH_BLOCK_SIZE.search(line) or _BLOCK_SIZE.search(line)
        if size and 0 < int(size[1]) <= limits.BLOCK_SIZE_MAX:
            values.setdefault(_rank(line), {})["block_size"] = int(size[1])
    return {
        rank: EngineGauges(
            found.get("running", 0.0),
            found.get("waiting", 0.0),
            found.get("kv_usage", 0.0),
            int(found["block_size"]) if "block_size" in found else None,
        )
        for rank, found in values.items()
    }


def _samples(page: bytes, name: bytes) -> Iterator[bytes]:
    """Find the sample lines of a metric without reading the others."""
    start = page.find(name)
    while start >= 0:
        end = page.find(b"\n", start)
        line = page[start : end if end >= 0 else len(page)]
        begins_line = start == 0 or page[start - 1 : start] == b"\n"
        if begins_line and line[len(name) : len(name) + 1] in (b"{", b" "):
            yield line
        start = page.find(name, start + len(name))


def _rank(line: bytes) -> int:
    found = _ENGINE.search(line)
    return int(found[1]) if found else 0


def _value(line: bytes) -> float:
    try:
        value = float(line.rsplit(b" ", 1)[1])
    except (IndexError, ValueError):
        return 0.0
    return value if 0.0 <= value < 1e9 else 0.0


def _read_key(endpoint: EndpointSettings) -> str | None:
    if endpoint.api_key_file is None:
        return None
    try:
        return endpoint.api_key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"endpoints: {endpoint.api_key_file}: cannot be read"]) from None

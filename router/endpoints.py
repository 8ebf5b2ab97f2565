"""Who is there, how busy they are, and what this router has under way with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import aiohttp

from kvatlas.common import limits
from kvatlas.common.ids import ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import shard_of
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.router.endpoint import Endpoint, Engine, EngineFacts, TokenizerVerdict
from kvatlas.router.flights import Board
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.metrics_page import EngineGauges, read_gauges
from kvatlas.router.served_names import Served, ServedNames

_LOG = logger("endpoints")


class Endpoints:
    """All endpoints, by model.

    Args:
        settings: the configuration.
        metrics: told of health and requests in flight.
        boards: of all models: how endpoints stand.

    Raises:
        ConfigError: a key file cannot be read.
    """

    def __init__(
        self, settings: Settings, metrics: RouterMetrics, boards: Mapping[ModelName, Board]
    ) -> None:
        self._metrics = metrics
        self._boards = boards
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
                self._boards[model.model].stand(name),
                labels=endpoint.labels,
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
        self._metrics.in_flight.labels(endpoint.name).set(endpoint.stand.own_requests)
        if endpoint.healthy != was_healthy:
            event = "endpoint.recovered" if endpoint.healthy else "endpoint.lost"
            _LOG.warning(event, endpoint=endpoint.name)

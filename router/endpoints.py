"""Who is there, how busy they are, and what this router has under way with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from kvatlas.common.clock import monotonic
from kvatlas.common.gauges import EngineGauges, Look, Sample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.key_file import read_key
from kvatlas.common.keyspace import shard_of
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings, Settings
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.endpoint import Endpoint, Engine, EngineFacts, TokenizerVerdict
from kvatlas.router.flights import Board
from kvatlas.router.health import Health
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.served_names import Served, ServedNames

_LOG = logger("endpoints")


class Endpoints:
    """All endpoints, by model.

    Args:
        settings: the configuration.
        metrics: told of health and requests in flight.
        boards: of all models: how endpoints stand.
        identities: how engines are spoken to.
        assumes_adapters: take unknown names for adapters; see `ServedNames`.

    Raises:
        ConfigError: a key file cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: RouterMetrics,
        boards: Mapping[ModelName, Board],
        identities: EngineIdentities,
        *,
        assumes_adapters: bool = False,
    ) -> None:
        self._identities = identities
        self._metrics = metrics
        self._boards = boards
        self._configured = {m.model: m.block_size for m in settings.models}
        self._by_model: dict[ModelName, list[Endpoint]] = {m.model: [] for m in settings.models}
        self.names = ServedNames(settings.models, assumes_adapters=assumes_adapters)
        self.health = Health(self._configured, settings.router.ejection, metrics)
        self._engines: dict[str, Engine] = {}
        self._by_name: dict[EndpointName, tuple[Engine, Endpoint]] = {}
        for endpoint in settings.endpoints:
            self._add(settings, endpoint)

    def of(self, model: ModelName) -> list[Endpoint]:
        """List a model's endpoints."""
        return self._by_model[model]

    def candidates(self, served: Served) -> list[Endpoint]:
        """List the endpoints that a request may go to.

        One that serves another model is not among them, and one that has not been asked what it
        serves only where no other is. Where no engine has loaded a configured adapter, it may
        be one that they load when it is asked for, so all of them can take it. Nobody, where it is
        known that nobody answers.
        """
        if self.health.is_all_away(served.model):
            return []
        fit = [each for each in self._by_model[served.model] if each.facts.serves is not False]
        fit = [each for each in fit if each.facts.asked] or fit
        if served.adapter is None:
            return fit
        having = [each for each in fit if served.adapter in each.facts.adapters]
        if having or not self.names.may_be_loaded(served):
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

    def note_look(self, engine: Engine, found: Look) -> None:
        """Take over what we saw ourselves: it alone decides whether an engine is well."""
        for endpoint in engine.endpoints:
            if found.is_up:
                endpoint.answered()
                self._observe(endpoint, found.sample(endpoint.rank).gauges, found.at_s)
            else:
                endpoint.failed()
                self.health.unanswered(endpoint)
        lives = engine.lives
        engine.seen(found.sample(0), found.at_s)
        if found.is_up:
            for endpoint in engine.endpoints:
                self.health.answered(endpoint, is_new=engine.lives != lives)

    def note_alive(self, engine: Engine) -> None:
        """Take over that it answers, though not with its page.

        Its gauges grow old, so what strangers have there is guessed: as much as with the others.
        """
        all_ranks = self._by_model[engine.model]
        others = [each for each in all_ranks if each not in engine.endpoints]
        for endpoint in engine.endpoints:
            endpoint.answered()
            endpoint.asked = True
            if others:
                endpoint.guess_from(others)
            self.health.answered(endpoint)

    def note_shared(self, name: EndpointName, sample: Sample, looked_s: float) -> None:
        """Take over what an indexer saw of an engine that answered it.

        Nothing of one that has failed us since our last look that it answered, and nothing that is
        older than our own look: the engine's process may be another one by then.
        """
        engine, endpoint = self._by_name.get(name, (None, None))
        if engine is None or endpoint is None:
            return
        if not endpoint.failures and looked_s >= engine.seen_s:
            self._observe(endpoint, sample.gauges, looked_s)
            engine.seen(sample, looked_s)

    def _add(self, settings: Settings, endpoint: EndpointSettings) -> None:
        model = settings.model_named(endpoint.model)
        key = read_key(endpoint.api_key_file, "endpoints")
        tls = self._identities.of(endpoint.url)
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
                tls=tls,
            )
            self._by_model[model.model].append(added)
            engine = self._engines.setdefault(
                endpoint.url, Engine(endpoint.url, model.model, key, tls)
            )
            engine.endpoints.append(added)
            self._by_name[name] = engine, added
            self.health.join(added)
            self._metrics.in_flight.labels(name).set_function(partial(_in_flight, added))
            self._metrics.awaiting.labels(name).set_function(partial(_awaiting, added))
            self._metrics.queued_tokens.labels(name).set_function(partial(_queued_tokens, added))
            self._metrics.engine_waiting.labels(name).set_function(partial(_waiting, added))
            self._metrics.gauges_age.labels(name).set_function(partial(_gauges_age_s, added))

    def _learn_adapters(self) -> None:
        self.names.learn(
            {
                model: frozenset().union(*(each.facts.adapters for each in endpoints))
                for model, endpoints in self._by_model.items()
            }
        )

    def _observe(self, endpoint: Endpoint, gauges: EngineGauges, looked_s: float) -> None:
        endpoint.note_requests(monotonic())
        endpoint.observe(gauges, looked_s)
        self._note_block_size(endpoint, gauges.block_size)

    def _note_block_size(self, endpoint: Endpoint, found: int | None) -> None:
        if not found or found == endpoint.block_size:
            return
        if self._configured[endpoint.model] is None:
            endpoint.block_size = found
        elif not endpoint.is_odd:
            # Nothing that it caches can match; said once, since it does not change.
            endpoint.is_odd = True
            _LOG.error("endpoint.block_size_differs", endpoint=endpoint.name, found=found)


def _in_flight(endpoint: Endpoint) -> float:
    return endpoint.stand.own_requests


def _awaiting(endpoint: Endpoint) -> float:
    return endpoint.awaiting


def _queued_tokens(endpoint: Endpoint) -> float:
    return endpoint.queued_tokens


def _waiting(endpoint: Endpoint) -> float:
    return endpoint.waiting


def _gauges_age_s(endpoint: Endpoint) -> float:
    return endpoint.gauges_age_s(monotonic())

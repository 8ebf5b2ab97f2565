"""Who is there: the endpoints of each model, their load, and our own requests in flight.

An engine is one address; each of its data-parallel ranks is an endpoint. State changes only here,
on the event loop: by a scrape (`observe`, `scrape_failed`), by a failed connection, and by the
leases of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvatlas.common.errors import ConfigError, ModelNotFound
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard, shard_of
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings, ModelSettings, Settings
from kvatlas.router.engine_metrics import EngineSample

_LOG = logger("endpoints")

SCRAPE_FAILURES_MAX: Final = 3
"""Scrapes in a row that may fail before an endpoint counts as unhealthy."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One routable endpoint and what is known of it. Satisfies `scheduling.Load`.

    Attributes:
        url: base of the engine's HTTP address.
        headers: what each request to it carries: the engine's key, the rank.
        block_size: tokens per block; None while it is not known.
        requests: our own requests there.
        pending_tokens: their uncached prompt tokens that await a first byte.
        others_running: requests of others seen by the last scrape.
        others_waiting: requests of others that the last two scrapes saw in the queue.
        reachable: False from a refused or timed-out connection to the next scrape that succeeds.
        scrape_failures: in a row.
        scraped: whether a scrape has ever succeeded.
    """

    name: EndpointName
    model: ModelName
    url: str
    rank: int
    headers: tuple[tuple[str, str], ...]
    block_size: int | None
    configured_block_size: int | None
    requests: int = 0
    pending_tokens: int = 0
    others_running: int = 0
    others_waiting: int = 0
    kv_usage: float = 0.0
    reachable: bool = True
    scrape_failures: int = 0
    scraped: bool = False
    _waiting_before: int = 0
    _mismatch_told: bool = False

    @property
    def healthy(self) -> bool:
        """Tell whether it has answered lately."""
        return self.reachable and self.scrape_failures < SCRAPE_FAILURES_MAX

    def observe(self, sample: EngineSample, own: int) -> None:
        """Take over what a scrape found.

        Args:
            own: our requests there at that time, of those before and after it the larger number:
                counting our own as somebody else's would send the next turn away.
        """
        others = max(0, sample.running + sample.waiting - own)
        waiting = min(sample.waiting, others)
        self.others_waiting = min(waiting, self._waiting_before)
        self.others_running = others - self.others_waiting
        self._waiting_before = waiting
        self.kv_usage = sample.kv_usage
        self.scrape_failures = 0
        self.scraped = True
        self._set_reachable(reachable=True)
        self._learn(sample.block_size)

    def scrape_failed(self) -> None:
        """Count a scrape without an answer."""
        self.scrape_failures += 1
        if self.scrape_failures == SCRAPE_FAILURES_MAX:
            _LOG.warning("endpoint.fell_silent", endpoint=self.name)

    def connect_failed(self) -> None:
        """Take it out until a scrape succeeds: nobody listens there."""
        self._set_reachable(reachable=False)

    def _set_reachable(self, *, reachable: bool) -> None:
        if reachable != self.reachable:
            event = "endpoint.returned" if reachable else "endpoint.lost"
            _LOG.warning(event, endpoint=self.name)
            self.reachable = reachable

    def _learn(self, block_size: int | None) -> None:
        configured = self.configured_block_size
        if block_size is None or block_size == self.block_size:
            return
        if configured is None:
            self.block_size = block_size
            _LOG.info("endpoint.block_size_learned", endpoint=self.name, block_size=block_size)
        elif not self._mismatch_told:
            self._mismatch_told = True
            _LOG.warning(
                "endpoint.block_size_differed",
                endpoint=self.name,
                block_size=block_size,
                configured=configured,
            )

    def lease(self, uncached_tokens: int) -> Lease:
        """Count a request of ours until its lease is released."""
        return Lease(self, uncached_tokens)


class Lease:
    """One request of ours at an endpoint, counted; release it in `finally`."""

    __slots__ = ("_endpoint", "_held", "_tokens")

    def __init__(self, endpoint: Endpoint, uncached_tokens: int) -> None:
        self._endpoint = endpoint
        self._tokens = uncached_tokens
        self._held = True
        endpoint.requests += 1
        endpoint.pending_tokens += uncached_tokens

    def prefilled(self) -> None:
        """Take its tokens off the queue: the first byte is here. Safe to repeat."""
        self._endpoint.pending_tokens -= self._tokens
        self._tokens = 0

    def release(self) -> None:
        """Stop counting it. Safe to repeat."""
        self.prefilled()
        if self._held:
            self._held = False
            self._endpoint.requests -= 1


@dataclass(frozen=True, slots=True)
class Engine:
    """One address to scrape, and its endpoints by rank."""

    url: str
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """The endpoints of a model that cache in blocks of one size, and the shards they live in."""

    block_size: int
    endpoints: frozenset[EndpointName]
    shards: tuple[Shard, ...]


class Fleet:
    """All endpoints, by model. A model without endpoints is there, too."""

    def __init__(self, models: Sequence[ModelSettings], engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._shards = {model.model: model.index_shards for model in models}
        self._by_model: Mapping[ModelName, tuple[Endpoint, ...]] = {
            model.model: tuple(
                endpoint
                for engine in engines
                for endpoint in engine.endpoints
                if endpoint.model == model.model
            )
            for model in models
        }
        self._groups: dict[ModelName, tuple[tuple[int | None, ...], tuple[BlockGroup, ...]]] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Fleet:
        """Make the fleet that is configured.

        Raises:
            ConfigError: files of API keys cannot be read; all of them are named.
        """
        faults: list[str] = []
        engines = []
        for i, each in enumerate(settings.endpoints):
            try:
                engines.append(_engine(each, settings.model_named(each.model)))
            except (OSError, UnicodeDecodeError, ValueError) as error:
                why = getattr(error, "strerror", None) or "is not a key in ASCII"
                faults.append(f"endpoints.{i}.api_key_file: {why}")
        if faults:
            raise ConfigError(faults)
        return cls(settings.models, engines)

    @property
    def ready(self) -> bool:
        """Tell whether any endpoint has answered and its block size is known."""
        return any(e.scraped and e.block_size for each in self.engines for e in each.endpoints)

    def of(self, model: str) -> tuple[Endpoint, ...]:
        """Give the endpoints of a model, in the order of the configuration.

        Raises:
            ModelNotFound: no such model is configured.
        """
        found = self._by_model.get(ModelName(model))
        if found is None:
            raise ModelNotFound("The model does not exist", "model")
        return found

    def all(self) -> list[Endpoint]:
        """Give every endpoint."""
        return [endpoint for engine in self.engines for endpoint in engine.endpoints]

    def groups(self, model: ModelName) -> tuple[BlockGroup, ...]:
        """Group a model's endpoints by block size; who has none yet is in no group."""
        endpoints = self._by_model[model]
        sizes = tuple([endpoint.block_size for endpoint in endpoints])
        known = self._groups.get(model)
        if known is None or known[0] != sizes:
            known = (sizes, _group(model, endpoints, self._shards[model]))
            self._groups[model] = known
        return known[1]


def _group(
    model: ModelName, endpoints: Sequence[Endpoint], shards: int
) -> tuple[BlockGroup, ...]:
    by_size: dict[int, list[EndpointName]] = {}
    for endpoint in endpoints:
        if endpoint.block_size is not None:
            by_size.setdefault(endpoint.block_size, []).append(endpoint.name)
    return tuple(
        BlockGroup(
            size,
            frozenset(names),
            tuple(dict.fromkeys(shard_of(model, name, shards) for name in names)),
        )
        for size, names in sorted(by_size.items())
    )


def _engine(settings: EndpointSettings, model: ModelSettings) -> Engine:
    """Make the endpoints of one engine.

    Raises:
        OSError: its key cannot be read.
        ValueError: its key is not one.
    """
    key = _api_key(settings.api_key_file)
    names = settings.names()
    return Engine(
        settings.url,
        tuple(
            Endpoint(
                name=name,
                model=model.model,
                url=settings.url,
                rank=rank,
                headers=_headers(key, rank, len(names)),
                block_size=model.block_size,
                configured_block_size=model.block_size,
            )
            for rank, name in enumerate(names)
        ),
    )


def _headers(key: str | None, rank: int, ranks: int) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    if key is not None:
        headers.append(("Authorization", f"Bearer {key}"))
    if ranks > 1:
        # Rank 0 as well: without the header the engine would choose a rank itself.
        headers.append(("X-data-parallel-rank", str(rank)))
    return tuple(headers)


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    key = path.read_text(encoding="ascii").strip()
    if not key or not key.isprintable():
        raise ValueError("no key")
    return key

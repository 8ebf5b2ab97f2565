"""What a configuration of llm-d's says of models, rendering and the index. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from kvatlas.common.ids import Pool
from kvatlas.common.kv_groups import tier_of
from kvatlas.common.llm_d.parameters import (
    BlockIndex,
    Events,
    Indexer,
    PodDiscovery,
    PreciseIndex,
    TokenProducer,
    Vllm,
)
from kvatlas.common.llm_d.plugins import Plugin, Plugins, Warned
from kvatlas.common.llm_d.schema import Reader

RENDERER: Final = "http://localhost:8000"
"""Where llm-d expects its renderer where nothing else is said: beside it in the pod."""
_GUESSED: Final = (
    "matches come from engines' KV events, not from what was sent before: engines need"
    " --kv-events-config"
)
_MATCHING: Final = frozenset({
    "prefix-cache-scorer", "no-hit-lru-scorer", "prefix-cache-affinity-filter", "latency-scorer",
})  # fmt: skip


@dataclass(slots=True)
class IndexParts:
    """Settings that come of it.

    Attributes:
        models: entries of `models`.
        of_models: settings of each model that does not say so itself.
        redis: of `redis`.
        events: of each entry of `discovery`.
        tls: of `endpoint_tls`.
    """

    models: list[dict[str, Any]] = field(default_factory=list)
    of_models: dict[str, Any] = field(default_factory=dict)
    redis: dict[str, Any] = field(default_factory=dict)
    events: dict[str, Any] = field(default_factory=dict)
    tls: dict[str, Any] = field(default_factory=dict)


class IndexReader:
    """Reads the plugins that tokenize and index."""

    def __init__(self, reader: Reader, plugins: Plugins, warned: Warned) -> None:
        self._faults = reader.faults
        self._plugins = plugins
        self._warned = warned
        self._parts = IndexParts()

    def read(self, in_use: list[Plugin]) -> IndexParts:
        """Give what they say.

        Args:
            in_use: the plugins of the profile that decides.
        """
        for each in self._plugins.used("tokens"):
            if (told := self._plugins.parameters(TokenProducer, each)) is not None:
                self._tokens(told, f"{each.path}.parameters")
        precise = self._plugins.of("precise-prefix-cache-producer", "precise-prefix-cache-scorer")
        for each in precise:
            if (index := self._plugins.parameters(PreciseIndex, each)) is not None:
                self._index(index, f"{each.path}.parameters")
        approximate = self._plugins.of("approx-prefix-cache-producer")
        if approximate or not precise:
            self._guessed(approximate, in_use, has_precise=bool(precise))
        return self._parts

    def _guessed(
        self, approximate: list[Plugin], in_use: list[Plugin], *, has_precise: bool
    ) -> None:
        names = [each.name for each in approximate]
        if not has_precise:
            names += [each.name for each in in_use if each.type in _MATCHING]
        if names:
            self._warned.add(_GUESSED, *names)

    # --- tokens ---------------------------------------------------------------------------------

    def _tokens(self, told: TokenProducer, path: str) -> None:
        if told.uds_tokenizer_config is not None:
            self._warned.add("prompts are tokenized here", "udsTokenizerConfig")
        if not told.model_name:
            return
        model = self._model(told.model_name)
        if told.estimate is None and told.uds_tokenizer_config is None:
            self._renderer(told.vllm or Vllm(), model, f"{path}.vllm")

    def _model(self, name: str) -> dict[str, Any]:
        """Give the entry of a model; its tokenizer is the one of that name on the hub."""
        for each in self._parts.models:
            if each["name"] == name:
                return each
        model: dict[str, Any] = {"name": name, "tokenizer": name}
        self._parts.models.append(model)
        return model

    def _renderer(self, told: Vllm, model: dict[str, Any], path: str) -> None:
        if told.endpoint_discovery is not None:
            if told.url:
                self._faults.append(f"{path}: url and endpointDiscovery exclude each other")
            self._warned.add("prompts are rendered here", "endpointDiscovery")
            return
        url = _with_port(told.url or RENDERER)
        if url is None:
            self._faults.append(f"{path}.url: is written http://host:port")
            return
        model["render_url"] = url
        self._renderer_tls(told)
        if told.timeout is not None or told.mm_timeout is not None:
            self._warned.add(
                "a renderer is waited for as long as models[].render_timeout_s says",
                *(["timeout"] if told.timeout is not None else []),
                *(["mmTimeout"] if told.mm_timeout is not None else []),
            )

    def _renderer_tls(self, told: Vllm) -> None:
        files = {
            "ca_file": told.ca_cert_path,
            "cert_file": told.client_cert_path,
            "key_file": told.client_key_path,
        }
        self._parts.tls.update({name: path for name, path in files.items() if path})
        if told.insecure_skip_verify:
            self._warned.add("certificates of renderers are verified", "insecureSkipVerify")

    # --- the index ------------------------------------------------------------------------------

    def _index(self, told: PreciseIndex, path: str) -> None:
        indexer = told.indexer_config or Indexer()
        if indexer.tokenizers_pool_config is not None:
            self._warned.add("prompts are tokenized here", "tokenizersPoolConfig")
            if indexer.tokenizers_pool_config.model_name:
                self._model(indexer.tokenizers_pool_config.model_name)
        self._store(indexer.kv_block_index_config or BlockIndex(), path)
        weights = {
            tier_of(Pool(each.name.lower(), 0)): each.weight
            for each in indexer.kv_cache_backend_configs or []
        }
        if (rest := indexer.kv_cache_default_backend_weight) is not None:
            weights = {**dict.fromkeys(("disk", "remote"), rest), **weights}
        if weights:
            self._parts.of_models["tier_weights"] = weights
        self._events(told.kv_events_config or Events(), f"{path}.kvEventsConfig")

    def _store(self, told: BlockIndex, path: str) -> None:
        redis = told.redis_config or told.valkey_config
        if redis is None:
            return
        address = redis.address or "127.0.0.1:6379"
        url = address.replace("valkey", "redis", 1) if address.startswith("valkey") else address
        url = url if "://" in url else f"redis://{url}"
        if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
            where = f"{path}.indexerConfig.kvBlockIndexConfig.redisConfig.address"
            self._faults.append(f"{where}: is an address of Redis")
            return
        self._parts.redis["url"] = url
        if redis.enable_rdma:
            self._warned.add("Redis is spoken to over TCP", "enableRDMA")

    def _events(self, told: Events, path: str) -> None:
        if told.engine_type not in ("", "vllm"):
            self._faults.append(f"{path}.engineType: only events of vllm are read")
        if told.zmq_endpoint and not told.discover_pods:
            text = "engines cannot connect to kvatlas, which connects to them: have each bind its"
            self._faults.append(f"{path}.zmqEndpoint: {text} own endpoint, and set discoverPods")
        elif told.zmq_endpoint:
            self._warned.add("engines cannot connect to kvatlas", "zmqEndpoint")
        if told.discover_pods is False and not told.zmq_endpoint:
            self._parts.events = {"events_port": None, "replay_port": None}
            return
        pods = told.pod_discovery_config or PodDiscovery()
        replay = pods.replay_socket_port if pods.replay_socket_port > 0 else None
        self._parts.events = {"events_port": pods.socket_port, "replay_port": replay}
        if replay is None:
            self._warned.add("each gap in events is a new beginning without replaySocketPort")


def _with_port(url: str) -> str | None:
    """Write an address with its port; None where it is none, or has a path."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    if port is None or not parts.hostname or parts.path not in ("", "/"):
        return None
    if parts.query or parts.fragment or parts.username:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"

"""The parameters of those of llm-d's plugins that become settings of ours. Pure.

Those of plugins that we have too are read where these are (`router/scheduling`); those of plugins
that are done without are not looked at.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kvatlas.common.llm_d.schema import Entry, Name
from kvatlas.common.llm_d.values import Duration

Port = Annotated[int, Field(ge=0, le=65_535)]


class Vllm(Entry):
    """A service that renders, of a token-producer."""

    url: str = ""
    timeout: Duration | None = None
    mm_timeout: Duration | None = None
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    insecure_skip_verify: bool = False
    endpoint_discovery: dict[str, Any] | None = None
    messages_render_mode: Literal["auto", "native", "legacy"] = "auto"
    prefill_only: bool = False


class TokenProducer(Entry):
    """Which model, and what renders."""

    model_name: str = ""
    vllm: Vllm | None = None
    estimate: dict[str, Any] | None = None
    uds_tokenizer_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _renders_a_model(self) -> Self:
        if self.vllm is not None and not self.model_name:
            raise ValueError("modelName is needed with vllm")
        return self


class TokenProcessor(Entry):
    """How llm-d hashes blocks; we learn the size from engines and hash in our own way."""

    block_size_tokens: Annotated[int, Field(ge=0)] = 0
    block_size: Annotated[int, Field(ge=0)] = 0
    hash_seed: str = ""
    hash_algorithm: Literal["", "cbor-fnv", "xxh64"] = ""


class RedisIndex(Entry):
    """Where llm-d's index is kept."""

    address: str = Field("", repr=False)
    backend_type: Literal["", "redis", "valkey"] = ""
    enable_rdma: Annotated[bool, Field(alias="enableRDMA")] = False


class BlockIndex(Entry):
    """What llm-d keeps its index in."""

    in_memory_config: dict[str, Any] | None = None
    cost_aware_memory_config: dict[str, Any] | None = None
    redis_config: RedisIndex | None = None
    valkey_config: RedisIndex | None = None
    enable_metrics: bool = False
    metrics_logging_interval: int | str | None = None


class Backend(Entry):
    """What a block is worth in a tier."""

    name: Name
    weight: Annotated[float, Field(ge=0, le=1)]


class TokenizersPool(Entry):
    """The tokenizers that older versions had."""

    model_name: str = ""
    workers_count: int | None = None
    hf: dict[str, Any] | None = None
    local: dict[str, Any] | None = None
    uds: dict[str, Any] | None = None


class Indexer(Entry):
    """llm-d's index."""

    kv_block_index_config: BlockIndex | None = None
    kv_cache_backend_configs: list[Backend] | None = None
    kv_cache_default_backend_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    tokenizers_pool_config: TokenizersPool | None = None


class PodDiscovery(Entry):
    """At which ports engines tell events."""

    pod_label_selector: str = ""
    pod_namespace: str = ""
    socket_port: Port = 5557
    replay_socket_port: int = 0


class Events(Entry):
    """How engines' events are had."""

    zmq_endpoint: str = ""
    topic_filter: str = ""
    concurrency: Annotated[int, Field(ge=0)] = 0
    engine_type: str = ""
    tracing: bool = False
    discover_pods: bool | None = None
    pod_discovery_config: PodDiscovery | None = None


class PreciseIndex(Entry):
    """The index that follows engines' events."""

    token_processor_config: TokenProcessor | None = None
    indexer_config: Indexer | None = None
    kv_events_config: Events | None = None
    speculative_indexing: bool = False
    speculative_ttl: Annotated[str, Field(alias="speculativeTTL")] = ""


class EndpointHeader(Entry):
    """A header that names an endpoint."""

    header: str = "x-session-token"


class IdSource(Entry):
    """Where the id of a conversation stands."""

    header: str = ""
    attribute: str = ""
    producer: str = ""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if bool(self.header) == bool(self.attribute):
            raise ValueError("has either header or attribute")
        return self


class SessionId(Entry):
    """Ids of conversations."""

    sources: list[IdSource] | None = None
    eviction_ttl_seconds: Annotated[float, Field(ge=0)] = 0.0
    eviction_sweep_seconds: Annotated[float, Field(ge=0)] = 0.0


class SessionAffinity(Entry):
    """How conversations are told apart; the last five in older versions."""

    strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    encoded_endpoint_header_config: EndpointHeader | None = None
    session_id_config: SessionId | None = None
    profile_name: str = ""
    algorithm: Literal["encoded_endpoint_header", "session_id_header"] | None = None
    header_name: str = ""
    eviction_ttl_seconds: Annotated[float, Field(ge=0)] = 0.0
    eviction_sweep_seconds: Annotated[float, Field(ge=0)] = 0.0
    miss_threshold: Annotated[int, Field(ge=0)] = 0


class SessionIdProducer(Entry):
    """Where a conversation's id stands."""

    header_name: str = ""
    cookie_name: str = ""


class AgentIdentity(Entry):
    """Further headers that tell agents' conversations apart."""

    additional_session_headers: list[str] | None = None


class PrefixScorer(Entry):
    """Parameters of the prefix scorer in older versions, with what they are called since."""

    prefix_length_weight: float | None = None
    max_model_len: int | None = None


class FileDiscovery(Entry):
    """A file that lists endpoints."""

    path: Name
    watch_file: bool = False


class MetricsSource(Entry):
    """How engines' metrics are read."""

    scheme: Literal["http", "https"] = "http"
    path: str = "/metrics"
    port: Port | None = None
    interval: Duration | None = None
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    families: list[str] | None = None


class MetricsExtractor(Entry):
    """What engines' metrics are called."""

    engine_label_key: str = ""
    default_engine: str = "vllm"
    engine_configs: list[dict[str, Any]] | None = None


class StageProfiles(Entry):
    """The names of the profiles of each stage."""

    decode: str = "decode"
    prefill: str = "prefill"
    encode: str = "encode"


class StageDeciders(Entry):
    """What decides whether a stage runs."""

    prefill: str = ""
    encode: str = ""


class StagedHandler(Entry):
    """Which profiles run for a request."""

    profiles: StageProfiles | None = None
    deciders: StageDeciders | None = None
    stage_order: str = ""


class UtilizationDetector(Entry):
    """When an endpoint is full, as its metrics say."""

    queue_depth_threshold: Annotated[int, Field(gt=0)] = 5
    kv_cache_util_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    metrics_staleness_threshold: Duration | None = None
    headroom: Annotated[float, Field(ge=0)] = 0.0


class ConcurrencyDetector(Entry):
    """When an endpoint is full, as is counted here."""

    max_concurrency: Annotated[int, Field(gt=0)] = 100
    max_token_concurrency: Annotated[int, Field(gt=0)] = 1_000_000
    headroom: Annotated[float, Field(ge=0)] = 0.0
    concurrency_mode: Literal["requests", "tokens", "hybrid"] = "requests"
    in_flight_load_producer_name: str = ""

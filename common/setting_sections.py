"""The sections of the configuration: what can be set, and what a value must be.

`common/settings.py` puts them together and reads them; docs/CONFIG.md explains each setting.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from kvatlas.common import limits
from kvatlas.common.ids import EndpointName, ModelName, endpoint_name
from kvatlas.common.kv_groups import DEFAULT_TIER_WEIGHTS, TIERS, Tier
from kvatlas.common.section import STRICT
from kvatlas.common.tls_settings import EndpointTls, ListenTls

REDIS_SCHEMES = ("redis", "rediss", "unix")

Port = Annotated[int, Field(ge=0, le=65_535)]
ModelId = Annotated[str, Field(min_length=1, max_length=limits.MODEL_NAME_CHARS_MAX)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
HostPort = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):\d{1,5}$")]


def _http_address(url: str) -> str:
    """Check an address of the form http://host:port; a slash at its end is taken off."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None:
        raise ValueError("is written http://host:port")
    if parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("is written http://host:port, with nothing behind or before it")
    if re.search(r"\s", url):
        raise ValueError("holds white space")
    return f"{parts.scheme}://{parts.netloc}"


HttpAddress = Annotated[str, AfterValidator(_http_address)]


class _Section(BaseModel):
    """A part of the configuration."""

    model_config = STRICT


class RedisSettings(_Section):
    """Where the shared index lives.

    Attributes:
        url: address, user, password, database and TLS (`rediss://`) of Redis; of a cluster any
            node; with sentinels its address does not count.
        nodes: further nodes of a cluster to ask when the first is away.
        sentinel_user, sentinel_password_file: for the sentinels; without a file they ask for none.
        user, password_file: instead of those in the URL; the file is read for each connection.
        router_write_user, router_write_password_file: for the little that routers write;
            without a user they write as they read.
        ca_file, cert_file, key_file: whom to trust, and how to show who we are, in PEM.
    """

    url: str = Field("redis://127.0.0.1:6379/0", repr=False)
    mode: Literal["single", "cluster", "sentinel"] = "single"
    nodes: Annotated[list[HostPort], Field(max_length=limits.REDIS_SEEDS_MAX)] = []
    sentinels: Annotated[list[HostPort], Field(max_length=limits.REDIS_SEEDS_MAX)] = []
    sentinel_master: Annotated[str, Field(min_length=1)] = "mymaster"
    sentinel_user: str | None = None
    sentinel_password_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    router_write_user: str | None = None
    router_write_password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    read_from_replicas: bool = False

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        scheme = urlsplit(url).scheme
        if scheme not in REDIS_SCHEMES:
            raise ValueError(f"scheme is one of {', '.join(REDIS_SCHEMES)}, not {scheme!r}")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        parts = urlsplit(self.url)
        if self.mode == "sentinel" and not self.sentinels:
            raise ValueError("mode sentinel needs sentinels")
        if self.mode != "single" and parts.scheme == "unix":
            raise ValueError(f"mode {self.mode} needs a redis:// or rediss:// url")
        if self.mode == "cluster" and parts.path not in ("", "/", "/0"):
            raise ValueError("a cluster has database 0 only")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if parts.scheme != "rediss" and (self.ca_file or self.cert_file):
            raise ValueError("ca_file and cert_file need a rediss:// url")
        if self.read_from_replicas and self.mode == "single":
            raise ValueError("read_from_replicas needs mode cluster or sentinel")
        return self

    def for_router_writes(self) -> Self:
        """Give the same place with the user that routers write as."""
        if self.router_write_user is None:
            return self
        login = {"user": self.router_write_user, "password_file": self.router_write_password_file}
        return self.model_copy(update=login)


Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TierWeights(_Section):
    """What a cached block is worth in each tier, beside one that must be computed."""

    gpu: Weight = DEFAULT_TIER_WEIGHTS["gpu"]
    cpu: Weight = DEFAULT_TIER_WEIGHTS["cpu"]
    disk: Weight = DEFAULT_TIER_WEIGHTS["disk"]
    remote: Weight = DEFAULT_TIER_WEIGHTS["remote"]

    def __str__(self) -> str:
        return f"{{{', '.join(f'{tier}: {weight:g}' for tier, weight in self)}}}"

    def by_tier(self) -> dict[Tier, float]:
        """Give the weights by tier."""
        return {tier: getattr(self, tier) for tier in TIERS}


class ModelSettings(_Section):
    """A model as engines serve it.

    Attributes:
        tokenizer: a folder with tokenizer.json and tokenizer_config.json, a hub id, or "demo".
        revision: commit of the hub id; without it the hub's default branch.
        block_size: tokens per block; learned from the engines when left out.
        chat_template: file with a Jinja template instead of the tokenizer's own.
        content_format: how the template wants message contents; "auto" finds out.
        default_chat_template_kwargs: variables of the template where a client gives none; the
            same as the engines' option of this name.
        exclude_tools_when_tool_choice_none: whether engines hide tools from the template where
            `tool_choice` is "none"; the same as their option of this name.
        index_shards: hash slots that the model's index is spread over.
        lora_adapters: names of adapters that are known before an engine has named its own.
        requests_max: under way with it in one router; 429 above.
        aliases: further names for it; engines are sent `name`, and clients read the one they sent.
        render_url: a service that renders what cannot be rendered here, or None.
        render_api: what it is asked with: vLLM's render endpoints, or /tokenize.
        render_timeout_s: for one answer of it; then the request goes by load.
        render_api_key_file: file with the key that it asks for.
        token_handover: give engines our token ids instead of letting them render and tokenize.
        tier_weights: what a cached block is worth to scheduling where it lives.
        trusted_templates: SHA-256 of templates that may be rendered in the router's own process
            beside those that are known, or "all".
    """

    name: ModelId
    tokenizer: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    block_size: Annotated[int, Field(ge=1, le=limits.BLOCK_SIZE_MAX)] | None = None
    chat_template: Path | None = None
    content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] | None = None
    exclude_tools_when_tool_choice_none: bool = False
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    index_shards: Annotated[int, Field(ge=1, le=256)] = 1
    lora_adapters: Annotated[list[ModelId], Field(max_length=limits.ADAPTERS_PER_MODEL_MAX)] = []
    aliases: Annotated[list[ModelId], Field(max_length=limits.ALIASES_PER_MODEL_MAX)] = []
    requests_max: Annotated[int, Field(ge=1)] | None = None
    render_url: HttpAddress | None = None
    render_api: Literal["render", "tokenize"] = "render"
    render_timeout_s: Annotated[float, Field(gt=0, le=limits.MATCH_S_MAX)] = 0.25
    render_api_key_file: Path | None = None
    token_handover: bool = False
    tier_weights: TierWeights = TierWeights()
    trusted_templates: Literal["all"] | list[Sha256] = []

    @property
    def model(self) -> ModelName:
        """Give the name with its type."""
        return ModelName(self.name)


class EventStream(NamedTuple):
    """Where the events of one rank are published.

    Attributes:
        replay: where replays are asked from, if there is such a place.
    """

    events: str
    replay: str | None


class EndpointSettings(_Section):
    """An engine: one address, and as many endpoints as it has data-parallel ranks.

    Attributes:
        url: where it serves HTTP.
        events: ZMQ address of its KV events (rank 0; rank r is r ports higher).
        replay: ZMQ address of its replay socket, alike.
        api_key_file: file with the key that the engine asks for.
        tls: for an https:// url, instead of `endpoint_tls` as a whole.
        labels: that filters of a scheduling profile may go by.
    """

    url: HttpAddress
    model: str
    events: str | None = None
    replay: str | None = None
    data_parallel_size: Annotated[int, Field(ge=1, le=limits.DATA_PARALLEL_MAX)] = 1
    api_key_file: Path | None = None
    tls: EndpointTls | None = None
    labels: Annotated[dict[str, str], Field(max_length=limits.LABELS_PER_ENDPOINT_MAX)] = {}

    @field_validator("events", "replay")
    @classmethod
    def _tcp_with_port(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(
            r"tcp://(\[[^\]]+\]|[^\s:*/]+):\d{1,5}", address
        ):
            raise ValueError("is written tcp://host:port (kvatlas connects, it never binds)")
        return address

    @model_validator(mode="after")
    def _replay_needs_events(self) -> Self:
        if self.replay and not self.events:
            raise ValueError("replay is given, but no events")
        return self

    @model_validator(mode="after")
    def _tls_needs_https(self) -> Self:
        if self.tls is not None and not self.url.startswith("https:"):
            raise ValueError("tls needs an https:// url")
        return self

    @property
    def host_port(self) -> str:
        """Give `host:port` as configured."""
        return urlsplit(self.url).netloc

    def names(self) -> tuple[EndpointName, ...]:
        """Name the endpoint of each data-parallel rank."""
        return tuple(endpoint_name(self.host_port, rank) for rank in range(self.data_parallel_size))

    def streams(self) -> tuple[EventStream, ...]:
        """Tell where the events of each rank are; nothing where there are none."""
        if self.events is None:
            return ()
        return tuple(
            EventStream(
                _port_higher(self.events, rank),
                _port_higher(self.replay, rank) if self.replay else None,
            )
            for rank in range(self.data_parallel_size)
        )


def _port_higher(address: str, by: int) -> str:
    """Write the address of a rank: vLLM has each one port higher than the one before."""
    return re.sub(r"\d+$", lambda port: str(int(port[0]) + by), address)


HeaderName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=limits.SESSION_HEADER_CHARS_MAX),
]
KEPT_FROM_SESSIONS: Final = frozenset({
    "authorization", "connection", "content-length", "content-type", "cookie", "host",
    "proxy-authorization", "set-cookie", "transfer-encoding", "x-api-key", "x-request-id",
})  # fmt: skip
"""Headers with a meaning of their own, keys among them, which tell nothing of conversations."""


class SessionSettings(_Section):
    """How requests tell which conversation they belong to; nothing of it is on by default.

    Attributes:
        header: carries a token that names the endpoint: sent with each answer, to be sent back.
        cookie: the same in a cookie.
        id_headers: whose value names the conversation; the first that is there counts.
    """

    header: HeaderName | None = None
    cookie: HeaderName | None = None
    id_headers: Annotated[list[HeaderName], Field(max_length=limits.SESSION_HEADERS_MAX)] = []

    @field_validator("header", "id_headers")
    @classmethod
    def _are_free(cls, value: str | list[str] | None) -> str | list[str] | None:
        names = [value] if isinstance(value, str) else value or []
        if taken := sorted({name for name in names if name.lower() in KEPT_FROM_SESSIONS}):
            raise ValueError(f"{', '.join(taken)}: has a meaning of its own")
        return value

    @property
    def is_on(self) -> bool:
        """Tell whether any of it is on."""
        return bool(self.header or self.cookie or self.id_headers)

    def __str__(self) -> str:
        told = self.model_dump(exclude_defaults=True)
        return f"{{{', '.join(f'{name}: {value}' for name, value in told.items())}}}"


class EjectionSettings(_Section):
    """When an endpoint that answers, but fails requests, gets none for a while.

    Attributes:
        failures: one after the other that eject.
        share: of its latest requests that failed, from which on they eject.
        requests_min: of which there must be so many.
        pause_s: of the first ejection; the n-th in short succession takes n times as long.
        pause_max_s: the longest.
        ejected_max: share of a model's endpoints that may be out when another is ejected.
    """

    failures: Annotated[int, Field(ge=1, le=1_000)] = limits.EJECTION_FAILURES
    share: Annotated[float, Field(gt=0, le=1)] = limits.EJECTION_SHARE
    requests_min: Annotated[int, Field(ge=1, le=limits.OUTCOMES_KEPT)] = (
        limits.EJECTION_REQUESTS_MIN
    )
    pause_s: Annotated[float, Field(gt=0, le=3_600)] = limits.EJECTION_S
    pause_max_s: Annotated[float, Field(gt=0, le=86_400)] = limits.EJECTION_MAX_S
    ejected_max: Annotated[float, Field(ge=0, le=0.5)] = limits.EJECTED_SHARE_MAX

    def __str__(self) -> str:
        told = self.model_dump(exclude_defaults=True)
        return f"{{{', '.join(f'{name}: {value:g}' for name, value in told.items())}}}"


LoadPath = Literal[
    "/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/rerank", "/v1/rerank", "/v2/rerank",
    "/score", "/v1/score", "/v1/audio/transcriptions", "/v1/audio/translations",
]  # fmt: skip
"""A closed set, so that no typing error opens an engine's administrative paths to clients."""

Targets = Annotated[
    dict[ModelId, Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]],
    Field(min_length=1, max_length=limits.REWRITE_TARGETS_MAX),
]


class RouterSettings(_Section):
    """The router.

    Attributes:
        tls, admin_tls: speak TLS on the clients' and on the operators' port; without it HTTP.
        policy: "prefix" weighs cached prefixes against load; "least-load" and "round-robin" are
            there to compare with.
        profile: plugins and how they make up the way to choose, instead of a policy; read by
            `router/profiles.py`.
        rewrites: names of models that clients may ask for, each with the names that engines are
            sent instead and their weights.
        session: how a conversation is kept on its endpoint.
        prefill_tokens_per_s: how fast an engine prefills, to write tokens as milliseconds.
        work_price: what prefill done again costs, in parts of the requests that wait per endpoint.
        load_paths: of engines, to serve beside those that become prompts; they go by load.
        tokenize_paths: serve /tokenize and /detokenize, alike.
        lookup_s: for Redis to answer, per request; then it goes by load.
        metrics_interval_s: time between two looks of its own at an engine's metrics, where no
            indexer tells of them.
        api_keys_file: hashes of the keys that clients must show, and whose they are; without it
            everybody is let in. Read again when it changes.
        tenant_salt_file: secret by which each tenant gets a cache of its own; needs api_keys_file.
        requests_max, held_bytes_max: requests under way, and bytes of their bodies; 429 above.
        tenant_requests_max, tenant_held_bytes_max: the same for each tenant; without them a tenant
            may have all.
        trusted_proxies: networks of proxies that are believed for whom they ask: their
            `Forwarded`, `X-Forwarded-*` and `X-Real-IP` pass; those of all others are dropped.
        shed_lag_s: lateness of the event loop above which nothing is let in; 0 for never.
        probe_wait_s: how long /readyz waits at start-up until engines have been asked for their
            models and token ids.
        ask_usage: ask for the usage of streams whose clients did not, and take it out again.
        relearn: have an engine whose cache is known in part announce what its requests hit.
        idle_probe_s: after so long without a request an engine gets one of a single token, so
            that it tells of a cache that was cleared meanwhile; 0 for never.
        handover_check_share: share of the handed-over prompts that are checked, 0 to 1.
        retries_share: of the requests under way that may be retries; three always may.
        ejection: when an endpoint that fails requests gets none for a while.
        pre_stop_s: how long requests are taken as ever once told to stop, though not ready.
        drain_s: for open requests after that; what is left is torn.
        trace_url: of an OpenTelemetry collector that takes traces over OTLP and HTTP.
        trace_share: share of the requests without a traceparent that are traced, 0 to 1.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    admin_host: str = "127.0.0.1"
    admin_port: Port = 9090
    tls: ListenTls | None = None
    admin_tls: ListenTls | None = None
    debug_headers: bool = False
    api_keys_file: Path | None = None
    tenant_salt_file: Path | None = None
    policy: Literal["prefix", "least-load", "round-robin"] = "prefix"
    profile: dict[str, Any] | None = None
    rewrites: Annotated[dict[ModelId, Targets], Field(max_length=limits.REWRITES_MAX)] = {}
    session: SessionSettings = SessionSettings()
    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] = 8_000.0
    work_price: Annotated[float, Field(ge=0, le=100)] = 1.0
    load_paths: list[LoadPath] = []
    tokenize_paths: bool = False
    lookup_s: Annotated[float, Field(gt=0, le=10)] = Field(default_factory=lambda: limits.LOOKUP_S)
    metrics_interval_s: Seconds = 0.5
    probe_wait_s: Annotated[float, Field(ge=0, le=600)] = 5.0
    ask_usage: bool = True
    relearn: bool = True
    idle_probe_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    handover_check_share: Annotated[float, Field(ge=0, le=1)] = limits.HANDOVER_CHECK_SHARE
    trusted_proxies: Annotated[
        list[IPv4Network | IPv6Network], Field(max_length=limits.TRUSTED_PROXIES_MAX)
    ] = []
    body_bytes_max: Annotated[int, Field(ge=1_024, le=2**31)] = limits.BODY_BYTES_MAX
    body_read_s: Seconds = limits.BODY_READ_S
    requests_max: Annotated[int, Field(ge=1, le=10**6)] = limits.REQUESTS_MAX
    held_bytes_max: Annotated[int, Field(ge=1_024, le=2**40)] = limits.BODIES_BYTES_MAX
    tenant_requests_max: Annotated[int, Field(ge=1, le=10**6)] | None = None
    tenant_held_bytes_max: Annotated[int, Field(ge=1_024, le=2**40)] | None = None
    shed_lag_s: Annotated[float, Field(ge=0, le=60)] = limits.SHED_LAG_S
    connect_s: Seconds = limits.CONNECT_S
    first_byte_s: Seconds = limits.FIRST_BYTE_S
    stream_idle_s: Seconds = limits.STREAM_IDLE_S
    retries_share: Annotated[float, Field(ge=0, le=1)] = limits.RETRIES_SHARE
    ejection: EjectionSettings = EjectionSettings()
    pre_stop_s: Annotated[float, Field(ge=0, le=600)] = limits.PRE_STOP_S
    drain_s: Seconds = limits.DRAIN_S
    trace_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    trace_share: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _tenants_have_keys(self) -> Self:
        if self.tenant_salt_file is not None and self.api_keys_file is None:
            raise ValueError(
                "tenant_salt_file needs api_keys_file: without keys nobody is a tenant"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.profile is not None and "policy" in self.model_fields_set:
            raise ValueError("policy and profile exclude each other")
        return self


class IndexerSettings(_Section):
    """The indexer.

    Attributes:
        admin_tls: speak TLS on the operators' port; without it HTTP.
        lease_s: for which an endpoint stays with an indexer that gives no sign of life.
        metrics_interval_s: shortest time between two looks at an engine's metrics.
        bound_by_gpu_blocks: believe no endpoint that holds more on its GPU than its engine's
            `num_gpu_blocks`.
    """

    admin_host: str = "127.0.0.1"
    admin_port: Port = 9091
    admin_tls: ListenTls | None = None
    lease_s: Annotated[float, Field(ge=0.3, le=60.0)] = 3.0
    metrics_interval_s: Annotated[float, Field(ge=0.02, le=limits.SCRAPE_PAUSE_MAX_S)] = 0.2
    bound_by_gpu_blocks: bool = True


class EngineSettings(_Section):
    """The simulated engine.

    Attributes:
        model: name of one of `models`; the first one when left out.
        events: ZMQ address to publish on, or None for no events. The engine always binds it:
            `tcp://*:5557` is every interface, `tcp://127.0.0.1:5557` loopback, port 0 any port.
        replay: ZMQ address to serve replays on, alike.
        event_format: "map" as vLLM writes events since 0.24, "array" as it did up to 0.20.
        num_blocks: blocks in the cache, one of them the null block.
        prefill_tokens_per_s: uncached prompt tokens computed per second.
        decode_step_ms: time of one decode step with one sequence.
        decode_step_ms_per_seq: what each further sequence adds to a step.
        max_model_len: tokens of prompt and answer together; lowered to what the cache holds.
        max_num_seqs: sequences that run at once; more wait.
        max_num_batched_tokens: tokens computed in one step at most.
        time_scale: model seconds per real second; above 1 everything is faster.
        replay_batches: batches kept for replays.
        prompt_tokens_details: report cached tokens, as vLLM's --enable-prompt-tokens-details.
        force_include_usage: report usage in every stream, as vLLM's --enable-force-include-usage.
        dev_mode: serve POST /reset_prefix_cache, as vLLM does in its development mode.
        render: serve the render endpoints, as vLLM does with --enable-scale-out; else 403.
        lora_adapters: names of adapters that it serves beside its model.
        store_responses: keep responses for those that go on from them, as vLLM does with
            VLLM_ENABLE_RESPONSES_API_STORE=1.
    """

    host: str = "127.0.0.1"
    port: Port = 8101
    model: str | None = None
    events: str | None = "tcp://*:5557"
    replay: str | None = "tcp://*:5558"
    topic: str = ""
    event_format: Literal["map", "array"] = "map"
    num_blocks: Annotated[int, Field(ge=2, le=10_000_000)] = 4_096
    block_size: Annotated[int, Field(ge=1, le=limits.BLOCK_SIZE_MAX)] = 16
    max_model_len: Annotated[int, Field(ge=1)] = 32_768
    max_num_seqs: Annotated[int, Field(ge=1, le=4_096)] = 64
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 8_192
    prefill_tokens_per_s: Annotated[float, Field(gt=0)] = 8_000.0
    decode_step_ms: Annotated[float, Field(ge=0)] = 10.0
    decode_step_ms_per_seq: Annotated[float, Field(ge=0)] = 0.25
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    replay_batches: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    prompt_tokens_details: bool = True
    force_include_usage: bool = False
    dev_mode: bool = True
    render: bool = False
    lora_adapters: list[ModelId] = []
    store_responses: bool = False


class LogSettings(_Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = True

"""What a router counts. Labels come from configuration and closed sets only."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STAGE_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
TTFT_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class RouterMetrics:
    """The router's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by outcome.", "model", "path", "status")
        self.fallbacks = self._counter(
            "fallbacks", "Requests routed by load alone.", "stage", "reason"
        )
        self.retries = self._counter("retries", "Requests sent to a second endpoint.", "model")
        self.upstream_errors = self._counter(
            "upstream_errors", "Engines that failed.", "endpoint", "kind"
        )
        self.plugin_faults = self._counter(
            "plugin_faults",
            "Calls of scheduling plugins that failed: raised, or gave a wrong count, scores out of"
            " range or wrong positions. The request was answered without them.",
            "plugin",
            "fault",
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens routed.", "model")
        self.match_tokens = self._counter(
            "match_tokens", "Prompt tokens predicted to be cached where they went.", "model"
        )
        self.keys_refused = self._counter(
            "keys_refused",
            "Requests refused for their API key: missing, unknown, disabled, or not for the model.",
            "reason",
        )
        self.api_keys = Gauge(
            "kvatlas_router_api_keys", "API keys that are known.", registry=self.registry
        )
        self.api_keys_good = Gauge(
            "kvatlas_router_api_keys_good",
            "0 when the file of API keys could not be used as it stands: the former ones count.",
            registry=self.registry,
        )
        self.rate_limited = self._counter(
            "rate_limited", "Requests refused at a limit of their tenant.", "tenant", "kind"
        )
        self.limit_failures = self._counter(
            "limit_failures",
            "Requests let in, or tokens not counted, since Redis did not say, by reason.",
            "reason",
        )
        self.shed = self._counter(
            "shed", "Requests refused before their body was read: too much under way.", "reason"
        )
        self.admitted = Gauge(
            "kvatlas_router_admitted", "Requests that were let in.", registry=self.registry
        )
        self.held_bytes = Gauge(
            "kvatlas_router_held_bytes", "Bytes of their bodies.", registry=self.registry
        )
        self.loop_lag = Gauge(
            "kvatlas_router_loop_lag_seconds",
            "Lateness of the event loop, the least of the latest few.",
            registry=self.registry,
        )
        self.members_cut = self._counter(
            "members_cut", "Members that steer engines, cut out of clients' bodies.", "member"
        )
        self.usage_reports = self._counter(
            "usage_reports",
            "Answers that were read for usage, by whether it tells the cached tokens. Only"
            " `without_cached`: start the engine with --enable-prompt-tokens-details.",
            "endpoint",
            "kind",
        )
        self.streams_not_done = self._counter(
            "streams_not_done", "Streams that ended cleanly, but without [DONE].", "endpoint"
        )
        self.predictions = self._counter(
            "predictions",
            "Predicted hits against the engine's cached_tokens: exact, over, under, or of another"
            " prompt than the engine's (its tokens are not ours).",
            "endpoint",
            "outcome",
        )
        self.predicted_hit_tokens = self._counter(
            "predicted_hit_tokens", "Cached tokens as predicted, of compared answers.", "endpoint"
        )
        self.actual_hit_tokens = self._counter(
            "actual_hit_tokens", "Cached tokens as the engine reported them, of these.", "endpoint"
        )
        self.over_tokens = self._counter(
            "over_tokens", "Tokens predicted and not there; for long: doubt.", "endpoint"
        )
        self.under_tokens = self._counter(
            "under_tokens", "Tokens there and not predicted; for long: the index lags.", "endpoint"
        )
        self.doubts = self._counter(
            "doubts", "Endpoints put into doubt: noted, failed or dropped.", "endpoint", "outcome"
        )
        self.relearned = self._counter(
            "relearned", "Requests that made an engine announce what they hit.", "endpoint"
        )
        self.idle_probes = self._counter(
            "idle_probes",
            "Requests of one token to idle engines: answered or failed.",
            "endpoint",
            "outcome",
        )
        self.handovers = self._counter(
            "handovers",
            "Chats of models with token_handover: handed_over, refused by the engine and sent again"
            " without, or why not.",
            "model",
            "outcome",
        )
        self.handover_checks = self._counter(
            "handover_checks", "Comparisons with the engine's own token ids.", "model", "outcome"
        )
        self.handover_on = self._gauge(
            "handover_on", "0 when a comparison found a difference: no more handovers.", "model"
        )
        self.stage_seconds = Histogram(
            "kvatlas_router_stage_seconds",
            "Time in each stage of a decision.",
            ("stage",),
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "kvatlas_router_first_byte_seconds",
            "From the request's arrival to the first byte of the answer.",
            ("model",),
            buckets=TTFT_BUCKETS,
            registry=self.registry,
        )
        self.windows_undecided = Gauge(
            "kvatlas_router_windows_undecided",
            "Matches of hybrid endpoints given up because their windows lie too far back.",
            registry=self.registry,
        )
        self.in_flight = self._gauge("in_flight", "Own requests under way.", "endpoint")
        self.board_errors = self._counter(
            "board_errors", "Reads and writes of the flight log that failed, by reason.", "reason"
        )
        self.contested = self._counter(
            "contested",
            "Decisions made again, since other routers decided at the same moment.",
            "model",
        )
        self.routers = self._gauge(
            "routers", "Routers known to live, this one among them.", "model"
        )
        self.gauges_age = self._gauge(
            "gauges_age_seconds",
            "Since the newest look at an engine's gauges, ours or an indexer's; +Inf before one.",
            "endpoint",
        )
        self.gauge_errors = self._counter(
            "gauge_errors", "Readings of shared gauges that failed, by reason.", "reason"
        )
        self.looks = self._counter(
            "looks",
            "Looks of our own at engines, since nothing fresh was shared or they failed us.",
            "outcome",
        )
        self.healthy = self._gauge("endpoint_healthy", "1 when it answers.", "endpoint")
        self.tokenizer_agrees = self._gauge(
            "tokenizer_agrees",
            "1 when its /tokenize gives our token ids, 0 when it does not: then its model's "
            "requests go by load. Absent while it has not been asked or cannot be.",
            "endpoint",
        )
        self.serves_model = self._gauge(
            "endpoint_serves_model",
            "1 when it lists the model that it is configured for, 0 when it does not: then it "
            "gets no requests. Absent where it does not tell.",
            "endpoint",
        )
        self.renders = self._counter(
            "renders",
            "Prompts asked from a render service; `cached` cost it nothing, what begins with "
            "render_ went by load.",
            "model",
            "outcome",
        )
        self.probes = self._counter(
            "probes", "Rounds of tokenizer probes by outcome.", "endpoint", "outcome"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvatlas_router_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kvatlas_router_{name}", text, labels, registry=self.registry)

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
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens routed.", "model")
        self.match_tokens = self._counter(
            "match_tokens", "Prompt tokens predicted to be cached where they went.", "model"
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
        self.healthy = self._gauge("endpoint_healthy", "1 when it answers.", "endpoint")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvatlas_router_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kvatlas_router_{name}", text, labels, registry=self.registry)

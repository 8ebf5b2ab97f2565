"""The metrics of an engine, under vLLM's names."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
ENGINE_LABEL = "0"

_LABELS = ("model_name", "engine")
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)


class EngineMetrics:
    """Counters of one engine; what is read from its state is a gauge with a function.

    Args:
        cache_config: labels of `vllm:cache_config_info`.
    """

    def __init__(self, model: str, cache_config: dict[str, str]) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        labels = {"model_name": model, "engine": ENGINE_LABEL}
        info = {**cache_config, "engine": ENGINE_LABEL}
        Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig.",
            tuple(info),
            registry=self._registry,
        ).labels(**info).set(1)
        started = Gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            registry=self._registry,
        )
        started.set(time.time())
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens not computed.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._generation = self._counter("generation_tokens", "Tokens generated.")
        self._preemptions = self._counter("num_preemptions", "Sequences that lost their blocks.")
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._ended = {
            reason: self._success.labels(**labels, finished_reason=reason)
            for reason in ("stop", "length", "abort", "error")
        }
        self._ttft = self._histogram("time_to_first_token_seconds", "Time to first token.")
        self._e2e = self._histogram("e2e_request_latency_seconds", "Time to last token.")

    def watch(
        self,
        running: Callable[[], float],
        waiting: Callable[[], float],
        usage: Callable[[], float],
    ) -> None:
        """Show the state of the engine: numbers of sequences, and the share of blocks in use."""
        self._gauge("num_requests_running", "Sequences being computed.", running)
        self._gauge("num_requests_waiting", "Sequences waiting.", waiting)
        self._gauge("kv_cache_usage_perc", "Share of blocks in use, 0 to 1.", usage)

    def prefill_started(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a prompt that is looked up in the cache and scheduled."""
        self._queries.inc(prompt_tokens)
        self._hits.inc(cached_tokens)
        self._cached.inc(cached_tokens)

    def token_generated(self) -> None:
        """Count a token."""
        self._generation.inc()

    def first_token_sent(self, prompt_tokens: int, seconds: float) -> None:
        """Count a prompt that is computed, and how long its first token took."""
        self._prompt.inc(prompt_tokens)
        self._ttft.observe(seconds)

    def sequence_ended(self, reason: str, seconds: float) -> None:
        """Count an end: "length", "stop" or "abort"."""
        self._ended[reason].inc()
        self._e2e.observe(seconds)

    def preempted(self, count: int) -> None:
        """Count sequences that gave up their blocks."""
        self._preemptions.inc(count)

    def page(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return counter.labels(model_name=self._model, engine=ENGINE_LABEL)

    def _histogram(self, name: str, text: str) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, _LABELS, buckets=_TTFT_BUCKETS, registry=self._registry
        )
        return histogram.labels(model_name=self._model, engine=ENGINE_LABEL)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"vllm:{name}", text, _LABELS, registry=self._registry)
        gauge.labels(model_name=self._model, engine=ENGINE_LABEL).set_function(read)

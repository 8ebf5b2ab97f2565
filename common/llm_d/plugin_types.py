"""Every type of plugin that llm-d has, and what becomes of it here. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Use = Literal[
    "scorer",
    "filter",
    "picker",
    "session",
    "nothing",
    "tokens",
    "index",
    "discovery",
    "steers",
    "steers_profile",
    "disaggregation",
    "flow_control",
    "saturation",
    "admission",
    "prediction",
    "parsing",
    "data",
    "reports",
]
"""What a type is to us: a part of the profile, a source of settings, or something that we lack.

scorer, filter, picker, session: of a profile, under the same name, or that in RENAMED.
nothing: what it does is done in any case.
tokens, index, discovery: its parameters become settings.
steers: changes where requests go, and there is nothing like it here: a fault.
steers_profile: alike, but only where a profile has it.
the others: done without, or otherwise; named in a warning.
"""


def _table(use: Use, *types: str) -> dict[str, Use]:
    return dict.fromkeys(types, use)


USES: Final[Mapping[str, Use]] = {
    **_table(
        "scorer",
        "queue-scorer", "running-requests-size-scorer", "kv-cache-utilization-scorer",
        "load-aware-scorer", "active-request-scorer", "token-load-scorer", "prefix-cache-scorer",
        "no-hit-lru-scorer", "lora-affinity-scorer", "context-length-aware", "latency-scorer",
    ),
    **_table(
        "filter",
        "label-selector-filter", "by-label-selector", "by-label", "encode-filter",
        "prefill-filter", "decode-filter", "utilization-filter", "prefix-cache-affinity-filter",
        "header-based-testing-filter",
    ),
    **_table("picker", "max-score-picker", "random-picker", "weighted-random-picker"),
    **_table("session", "session-affinity-scorer", "session-affinity-filter"),
    **_table(
        "nothing",
        "single-profile-handler", "inflight-load-producer", "session-id-producer",
        "destination-endpoint-served-verifier",
    ),
    **_table("tokens", "token-producer", "tokenizer"),
    **_table(
        "index",
        "precise-prefix-cache-producer", "precise-prefix-cache-scorer",
        "approx-prefix-cache-producer",
    ),
    **_table("discovery", "file-discovery"),
    **_table(
        "steers",
        "header-profile-handler", "disaggregatedset-rollout-screener",
        "burst-prefix-cache-producer", "p2p-source-producer", "multicluster-file-discovery",
    ),
    **_table(
        "steers_profile",
        "header-label-affinity-scorer", "endpoint-attribute-scorer", "topology-affinity-scorer",
        "mm-embeddings-cache-scorer", "multicluster-queue-scorer",
        "multicluster-kv-cache-utilization-scorer", "multicluster-prefix-cache-scorer",
        "endpoint-attribute-filter", "topology-affinity-filter",
        "multicluster-session-affinity-filter",
    ),
    **_table(
        "disaggregation",
        "disagg-profile-handler", "pd-profile-handler", "disagg-headers-handler",
        "prefill-header-handler", "data-parallel-profile-handler", "prefix-based-pd-decider",
        "always-disagg-pd-decider", "always-disagg-multimodal-decider",
    ),
    **_table(
        "flow_control",
        "global-strict-fairness-policy", "round-robin-fairness-policy", "program-aware-fairness",
        "fcfs-ordering-policy", "edf-ordering-policy", "slo-deadline-ordering-policy",
        "static-usage-limit-policy", "priority-holdback-policy", "soft-reflective-ceiling-policy",
        "sheddable-eviction-filter", "priority-then-time-eviction-order-policy", "agent-identity",
    ),
    **_table("saturation", "utilization-detector", "concurrency-detector"),
    **_table("admission", "latency-slo-admitter", "probabilistic-admitter"),
    **_table("prediction", "predicted-latency-producer", "slo-headroom-tier-filter"),
    **_table(
        "parsing",
        "openai-parser", "anthropic-parser", "vllmhttp-parser", "sglanghttp-parser",
        "vllmgrpc-parser", "vertexai-parser", "passthrough-parser",
    ),
    **_table(
        "data",
        "metrics-data-source", "core-metrics-extractor", "models-data-source", "models-extractor",
        "dcgm-data-source", "dcgm-extractor", "topology-extractor", "k8s-notification-source",
        "endpoint-notification-source", "mm-embeddings-cache-producer", "local-syncer",
        "multicluster-metrics-data-source", "multicluster-metrics-extractor",
        "multicluster-approx-prefix-cache-producer",
    ),
    **_table("reports", "request-attribute-reporter"),
}  # fmt: skip

RENAMED: Final[Mapping[str, str]] = {
    "by-label-selector": "label-selector-filter",
    "precise-prefix-cache-scorer": "prefix-cache-scorer",
}
"""Types that are called otherwise in `router.profile`."""

HANDLERS: Final = frozenset({
    "single-profile-handler", "disagg-profile-handler", "pd-profile-handler",
    "data-parallel-profile-handler", "header-profile-handler",
})  # fmt: skip
"""Types that say which profiles run; there may be one of them."""

STAGED: Final = frozenset({"disagg-profile-handler", "pd-profile-handler"})
"""Handlers that know a profile for each stage of a request."""

SCORING: Final = frozenset({"session-affinity-scorer", "precise-prefix-cache-scorer"})
"""Types that score beside those whose use says so."""

WARNINGS: Final[Mapping[Use, str]] = {
    "disaggregation": "prefill, decode and encode are not told apart",
    "flow_control": "requests do not queue by priority and fairness",
    "saturation": "nothing is refused or held for a saturated pool",
    "admission": "nothing is refused for its priority",
    "prediction": "no latency is predicted to compare with wishes",
    "parsing": "bodies are read by our own parsers",
    "data": "engines are watched in our own way",
    "reports": "no attribute is reported to the gateway",
}
"""What it means that a use is done without, or otherwise."""

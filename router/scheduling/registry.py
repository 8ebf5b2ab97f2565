"""The plugins that come with kvatlas, under llm-d's names where it has them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from kvatlas.router.scheduling.affinity import (
    LoraAffinityScorer,
    NoHitLruScorer,
    PrefixCacheScorer,
    SessionAffinityScorer,
)
from kvatlas.router.scheduling.context_length import ContextLengthAware
from kvatlas.router.scheduling.cost import CostScorer
from kvatlas.router.scheduling.filters import (
    HealthyFilter,
    PrefixCacheAffinityFilter,
    SessionAffinityFilter,
    UtilizationFilter,
)
from kvatlas.router.scheduling.label_selector import LabelSelectorFilter
from kvatlas.router.scheduling.latency import LatencyScorer
from kvatlas.router.scheduling.named import NamedByRequestFilter
from kvatlas.router.scheduling.pickers import (
    MaxScorePicker,
    RandomPicker,
    RoundRobinPicker,
    SoftmaxPicker,
    WeightedRandomPicker,
)
from kvatlas.router.scheduling.roles import (
    ByLabelFilter,
    DecodeFilter,
    EncodeFilter,
    PrefillFilter,
)
from kvatlas.router.scheduling.scorers import (
    ActiveRequestScorer,
    EvenScorer,
    KvUsageScorer,
    LoadAwareScorer,
    QueueScorer,
    RequestScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

Kind = Literal["filter", "scorer", "picker"]

OURS: Final[Mapping[str, type]] = {
    "cost-scorer": CostScorer,
    "prefix-cache-scorer": PrefixCacheScorer,
    "queue-scorer": QueueScorer,
    "running-requests-size-scorer": RunningRequestsScorer,
    "kv-cache-utilization-scorer": KvUsageScorer,
    "load-aware-scorer": LoadAwareScorer,
    "active-request-scorer": ActiveRequestScorer,
    "token-load-scorer": TokenLoadScorer,
    "session-affinity-scorer": SessionAffinityScorer,
    "lora-affinity-scorer": LoraAffinityScorer,
    "no-hit-lru-scorer": NoHitLruScorer,
    "context-length-aware": ContextLengthAware,
    "latency-scorer": LatencyScorer,
    "request-count-scorer": RequestScorer,
    "even-scorer": EvenScorer,
    "healthy-filter": HealthyFilter,
    "label-selector-filter": LabelSelectorFilter,
    "by-label": ByLabelFilter,
    "encode-filter": EncodeFilter,
    "prefill-filter": PrefillFilter,
    "decode-filter": DecodeFilter,
    "header-based-testing-filter": NamedByRequestFilter,
    "prefix-cache-affinity-filter": PrefixCacheAffinityFilter,
    "utilization-filter": UtilizationFilter,
    "session-affinity-filter": SessionAffinityFilter,
    "max-score-picker": MaxScorePicker,
    "weighted-random-picker": WeightedRandomPicker,
    "random-picker": RandomPicker,
    "softmax-picker": SoftmaxPicker,
    "round-robin-picker": RoundRobinPicker,
}
"""Type names and what they stand for; a third party's plugin cannot take one of them."""

NEEDS_SESSION: Final = frozenset({"session-affinity-scorer", "session-affinity-filter"})
"""Types that do nothing unless requests tell which conversation they belong to."""

_METHODS: Final[Mapping[str, Kind]] = {"keep": "filter", "score": "scorer", "order": "picker"}


def kinds_of(plugin: object) -> frozenset[Kind]:
    """Tell what a plugin, or its class, is by its methods; it can be several things at once."""
    return frozenset(_kinds(plugin))


def _kinds(plugin: object) -> Iterator[Kind]:
    for method, kind in _METHODS.items():
        if callable(getattr(plugin, method, None)):
            yield kind

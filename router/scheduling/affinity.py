"""Scorers that look at what an endpoint holds or was given before. Pure.

docs/SCHEDULING.md has a paragraph for each, with its formula.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvatlas.common.gauges import Adapters
from kvatlas.common.ids import EndpointName
from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import Count, Positive, Share, takes_parameters


@takes_parameters
@dataclass(frozen=True, slots=True)
class PrefixCacheScorer:
    """Score by the match: (1 - w) x matched / prompt + w x min(1, matched / scale)^2.

    Attributes:
        match_length_weight: w: how much the length of the match counts beside its share.
        match_length_scale_tokens: a match so long counts in full.
        prefix_match_info_producer_name: taken and not used: there is one index, the exact one.
    """

    match_length_weight: Share = 0.0
    match_length_scale_tokens: Positive = 8_192.0
    prefix_match_info_producer_name: str = ""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 0 where nothing matches."""
        prompt, weight = max(1, work.prompt_tokens), self.match_length_weight
        shares = [min(1.0, each.match_tokens / prompt) for each in candidates]
        if not weight:
            return shares
        scale = self.match_length_scale_tokens
        return [
            (1.0 - weight) * share + weight * min(1.0, each.match_tokens / scale) ** 2
            for share, each in zip(shares, candidates, strict=True)
        ]

    def terms(self, work: Work, candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:  # noqa: ARG002 - interface
        """Give the matched tokens."""
        return [{"match_tokens": float(each.match_tokens)} for each in candidates]


@takes_parameters
@dataclass(frozen=True, slots=True)
class SessionAffinityScorer:
    """Score 1 for the endpoint that the conversation was on, 0 for the others."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 0 to each where no conversation is known."""
        if work.session is None:
            return [0.0] * len(candidates)
        return [float(each.endpoint == work.session) for each in candidates]


@takes_parameters
@dataclass(frozen=True, slots=True)
class LoraAffinityScorer:
    """Score 1 where the adapter runs, 0.8 where there is room, 0.6 where it waits, else 0."""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate; 1 to each where the request names no adapter."""
        adapter = work.adapter
        if adapter is None:
            return [1.0] * len(candidates)
        return [_adapter_score(adapter, each.load.adapters) for each in candidates]


def _adapter_score(adapter: str, adapters: Adapters) -> float:
    if adapter in adapters.running:
        return 1.0
    if len(adapters.running) + len(adapters.waiting) < adapters.most:
        return 0.8
    return 0.6 if adapter in adapters.waiting else 0.0


@takes_parameters
@dataclass(frozen=True, slots=True)
class NoHitLruScorer:
    """Spread requests that hit nothing anywhere: never used first, then least recently used.

    What it remembers is this router's own, and bounded.

    Attributes:
        lru_size: endpoints that are remembered.
        prefix_plugin_type, prefix_plugin_name, prefix_match_info_producer_name: taken and not
            used: there is one index, the exact one.
    """

    lru_size: Count = 1_024
    prefix_plugin_type: str = ""
    prefix_plugin_name: str = ""
    prefix_match_info_producer_name: str = ""
    _used: OrderedDict[EndpointName, None] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002 - interface
        """Give 1 - rank / (n - 1) to each; 0.5 to each where something is hit."""
        if not _is_cold(candidates):
            return [0.5] * len(candidates)
        if len(candidates) < 2:
            return [1.0] * len(candidates)
        age = {endpoint: i for i, endpoint in enumerate(self._used, 1)}
        ages = [age.get(each.endpoint, 0) for each in candidates]
        scores = [0.0] * len(candidates)
        for rank, i in enumerate(sorted(range(len(candidates)), key=ages.__getitem__)):
            scores[i] = 1.0 - rank / (len(candidates) - 1)
        return scores

    def note(self, work: Work, candidates: Sequence[Candidate], chosen: int) -> None:  # noqa: ARG002 - interface
        """Remember who got a request that hit nothing."""
        if not _is_cold(candidates):
            return
        endpoint = candidates[chosen].endpoint
        self._used[endpoint] = None
        self._used.move_to_end(endpoint)
        if len(self._used) > self.lru_size:
            self._used.popitem(last=False)


def _is_cold(candidates: Sequence[Candidate]) -> bool:
    return not any(each.match_tokens for each in candidates)

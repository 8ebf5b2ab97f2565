"""llm-d's scorer of latencies, as it scores where no latency is predicted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import Amount, takes_parameters


@takes_parameters
@dataclass(frozen=True, slots=True)
class LatencyScorer:
    """Score by free cache, queue and match, each by its weight.

    Attributes:
        composite_kv_weight, composite_queue_weight, composite_prefix_weight: of the three; where
            all are 0, the cache alone counts.
        ttft_weight, tpot_weight, headroom_selection_strategy,
            latency_prediction_info_producer_name: taken and not used: there is no predictor of
            latencies to compare with wishes.
        prefix_match_info_producer_name: taken and not used: there is one index, the exact one.
    """

    composite_kv_weight: Annotated[Amount, Field(alias="compositeKVWeight")] = 1.0
    composite_queue_weight: Amount = 1.0
    composite_prefix_weight: Amount = 1.0
    ttft_weight: Amount = 0.8
    tpot_weight: Amount = 0.2
    headroom_selection_strategy: Literal["least", "most"] = "least"
    latency_prediction_info_producer_name: str = ""
    prefix_match_info_producer_name: str = ""

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[float]:
        """Give one score per candidate."""
        kv, queue, prefix = self._shares()
        longest = max((each.load.waiting for each in candidates), default=0)
        prompt = max(1, work.prompt_tokens)
        return [
            kv * (1.0 - min(1.0, each.load.kv_usage))
            + queue * ((longest - each.load.waiting) / longest if longest else 1.0)
            + prefix * min(1.0, each.match_tokens / prompt)
            for each in candidates
        ]

    def _shares(self) -> tuple[float, float, float]:
        weights = (
            self.composite_kv_weight,
            self.composite_queue_weight,
            self.composite_prefix_weight,
        )
        total = sum(weights)
        if not total:
            return 1.0, 0.0, 0.0
        return weights[0] / total, weights[1] / total, weights[2] / total

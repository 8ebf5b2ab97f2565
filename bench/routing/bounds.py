"""What no router can do better than, by simulation; and where saturation begins. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.routing.site import Model
from bench.routing.trace import Slice
from kvatlas.cli.fleet import BLOCK_SIZE
from kvatlas.planner.choices import ORACLE, run
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job, ceiling, make_jobs
from kvatlas.planner.results import Figures, figures
from kvatlas.planner.simulation import Fleet
from kvatlas.planner.trace import Record

GOOD_SHARE = 0.95
"""Of what is offered; where the oracle gives less, the fleet is saturated."""
RATE_STEP = 0.05
RATE_MAX = 100.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Simulate on engines like those that run.

    Attributes:
        limit_s: a first token within so many seconds is good.
    """

    trace: Sequence[Record]
    model: Model
    limit_s: float

    def oracle(self, part: Slice) -> Figures:
        """Give the figures of an oracle that knows every queue and every cache at once."""
        return self.simulated(ORACLE, 1, part)

    def simulated(self, policy: str, routers: int, part: Slice) -> Figures:
        """Give the figures of a policy of the planner."""
        fleet = Fleet(self.model.engines, routers, self._engine())
        outcome = run(policy, self._jobs(part), fleet, partial(random.Random, 1))
        return figures(outcome, self.limit_s)

    def ceiling(self, part: Slice) -> float:
        """Give the share of prompt tokens that one cache without bounds would hit."""
        return ceiling(self._jobs(part), self._block_size)

    def saturation(self, part: Slice) -> float:
        """Give the lowest rate at which the oracle's goodput is under 95 % of what is offered."""
        rate = RATE_STEP
        while rate < RATE_MAX:
            slower = Slice(part.start_s, part.length_s, rate)
            if slower.records(self.trace) and self.oracle(slower).goodput < GOOD_SHARE:
                return round(rate, 2)
            rate += RATE_STEP
        return RATE_MAX

    @property
    def _block_size(self) -> int:
        # A block of an engine holds what so many tokens of the trace were scaled down to.
        return int(BLOCK_SIZE * self.model.factor)

    def _engine(self) -> EngineModel:
        model = self.model
        return EngineModel(
            prefill_tokens_per_s=model.prefill_tokens_per_s,
            decode_step_ms=model.decode_step_ms * model.factor,
            decode_step_ms_per_job=model.decode_step_ms_per_seq * model.factor,
            step_tokens_max=model.step_tokens,
            jobs_max=model.sequences,
            cache_blocks=model.cache_tokens // self._block_size,
            block_size=self._block_size,
        )

    def _jobs(self, part: Slice) -> list[Job]:
        """Make jobs whose prompts are as in the trace, and whose answers are scaled.

        A step that computes prompts, too, makes one token of each answer, which stands for
        `factor` of them, and takes as long: so answers slow prompts more than they would unscaled.
        """
        factor = self.model.factor
        records = [
            replace(each, output_tokens=-int(-each.output_tokens // factor))
            for each in part.records(self.trace)
        ]
        return make_jobs(records, self._block_size, [part.due_s(each) for each in records])

"""The oracle: a perfect, instant, shared index, true queues and true progress. Pure.

It counts what is queued at an engine as cached there, knows when the running step ends and how
many decoding jobs slow the steps, and adds the same price on work as the product does. No router
can know so much; it is a bound to compare with, not the best possible plan: it does not know what
will arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from kvatlas.planner.engine import Engine, Served
from kvatlas.planner.index import Holders
from kvatlas.planner.jobs import Job
from kvatlas.planner.policy import Choice, Sight
from kvatlas.router.scheduling import Chance


class Oracle:
    """Choose with everything known.

    Args:
        engines: all of them, to look into.
        holders: what they have cached, at this moment.
        work_price: how much a millisecond of prefill costs beyond the job's own wait.
    """

    shares: ClassVar[bool] = True
    scrapes: ClassVar[bool] = False

    def __init__(
        self, engines: Sequence[Engine], holders: Holders, work_price: float, chance: Chance
    ) -> None:
        self._engines = engines
        self._holders = holders
        self._factor = 1.0 + work_price
        self._chance = chance
        self._queued: dict[int, Counter[int]] = {}

    def choose(self, job: Job, sight: Sight) -> Choice:
        """Give the cheapest; of equal ones any."""
        size = self._engines[0].model.block_size
        blocks = self._blocks(job)
        most = job.usable_blocks
        best, ties, tokens_of = float("inf"), [0], {}
        for endpoint, engine in enumerate(self._engines):
            tokens = job.prompt_tokens - min(blocks.get(endpoint, 0), most) * size
            cost = self._cost_s(engine, tokens, sight.now_s)
            if cost < best:
                best, ties, tokens_of = cost, [endpoint], {endpoint: tokens}
            elif cost == best:
                ties.append(endpoint)
                tokens_of[endpoint] = tokens
        chosen = ties[self._chance.randrange(len(ties))] if len(ties) > 1 else ties[0]
        return Choice(chosen, tokens_of[chosen])

    def launched(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Count what will be cached."""
        for run in served.job.runs:
            self._queued.setdefault(run.number, Counter())[served.endpoint] += 1

    def began(self, router: int, served: Served, now_s: float) -> None:  # noqa: ARG002 - interface
        """Count it no longer: it is cached."""
        for run in served.job.runs:
            counts = self._queued[run.number]
            counts[served.endpoint] -= 1
            if not counts[served.endpoint]:
                del counts[served.endpoint]
                if not counts:
                    del self._queued[run.number]

    def ended(self, router: int, served: Served, now_s: float) -> None:
        """Need no telling."""

    def _blocks(self, job: Job) -> dict[int, int]:
        found: dict[int, int] = {}
        for run in job.runs:
            start = run.start
            for endpoint, count in self._holders.of(run).items():
                found[endpoint] = start + count
            for endpoint in self._queued.get(run.number, ()):
                found[endpoint] = start + run.length
        return found

    def _cost_s(self, engine: Engine, tokens: int, now_s: float) -> float:
        model = engine.model
        token_s = 1.0 / model.prefill_tokens_per_s
        decoding = engine.decoding
        if decoding:
            step_ms = model.decode_step_ms + decoding * model.decode_step_ms_per_job
            token_s += step_ms / 1e3 / max(1, model.step_tokens_max - decoding)
        queued = engine.left_tokens + engine.waiting_tokens
        wait_s = engine.busy_until_s(now_s) - now_s + queued * token_s
        return wait_s + self._factor * tokens * token_s

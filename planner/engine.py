"""One model engine in virtual time: continuous batching with chunked prefill. Pure.

A step computes one token of every decoding job and, first come first served, so many tokens of
prompts as the budget leaves. Its time is prefill tokens / rate, plus a decode step that grows with
the decoding jobs. Where nothing but decoding can happen, many steps are taken as one.
Source of the order: vllm/v1/core/sched/scheduler.py.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvatlas.planner.cache import Changed, RunCache
from kvatlas.planner.jobs import Job
from kvatlas.router.flights import Launch


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What all engines of a fleet are like.

    Attributes:
        prefill_tokens_per_s: uncached prompt tokens computed per second.
        decode_step_ms: time of one decode step with one job.
        decode_step_ms_per_job: what each further one adds.
        step_tokens_max: tokens computed in one step at most (max_num_batched_tokens).
        jobs_max: jobs that run at once; more wait (max_num_seqs).
        cache_blocks: blocks of its cache.
        block_size: tokens per block.
    """

    prefill_tokens_per_s: float = 15_928.0
    decode_step_ms: float = 10.0
    decode_step_ms_per_job: float = 0.25
    step_tokens_max: int = 8_192
    jobs_max: int = 256
    cache_blocks: int = 32_000
    block_size: int = 16


@dataclass(slots=True, eq=False)
class Served:
    """A job at an engine, and what became of it.

    Attributes:
        endpoint: the engine's number.
        decided_s: when it was sent there.
        uncached_tokens: prompt tokens that the router believed it would compute.
        hit_tokens: prompt tokens that the engine found cached when it began.
        left_tokens: prompt tokens that are still to compute; before it began, as believed.
        began_s, ended_s: when its first and its last token came; below 0 before.
        launch: what the product tells other routers of it.
    """

    job: Job
    endpoint: int
    decided_s: float
    uncached_tokens: int
    left_tokens: int
    hit_tokens: int = 0
    began_s: float = -1.0
    ended_s: float = -1.0
    launch: Launch | None = None


Told = Callable[[Served, float], None]
"""Told of a first or a last token, and when it came."""


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is told of what happens in an engine.

    Attributes:
        began: of each first token.
        ended: of each last token.
        cached: of blocks that were stored or removed, when they are scheduled.
        stepped: at the end of each step that changed the cache; events go out then.
    """

    began: Told
    ended: Told
    cached: Changed
    stepped: Callable[[float], None]


class Engine:
    """Run jobs. Whoever drives it calls `step_over` when `due_s` has come.

    Args:
        model: what it is like.
        ears: who hears of what.
    """

    def __init__(self, model: EngineModel, ears: Ears) -> None:
        self.model = model
        self.cache = RunCache(model.cache_blocks, ears.cached)
        self.waiting: deque[Served] = deque()
        self.due_s = -1.0
        """When its step, or its stretch of decode steps, is over; below 0 while it is idle."""
        self.waiting_tokens = 0
        """Prompt tokens of waiting jobs, less what was believed to be cached."""
        self.prefill_tokens = 0
        """Prompt tokens computed so far."""
        self._ears = ears
        self._partial: Served | None = None
        self._prefilled: list[Served] = []
        self._decoding: list[tuple[int, int, Served]] = []
        self._steps = 0
        self._stretch = 1
        self._began_s = 0.0
        self._step_s = 0.0
        self._blocked = False
        self._touched = False

    @property
    def running(self) -> int:
        """Count jobs that have begun and not ended."""
        return len(self._decoding) + len(self._prefilled) + (self._partial is not None)

    @property
    def left_tokens(self) -> int:
        """Count prompt tokens of the running job that no step has been begun for."""
        return self._partial.left_tokens if self._partial else 0

    @property
    def decoding(self) -> int:
        """Count jobs whose first token has come."""
        return len(self._decoding)

    def busy_until_s(self, now_s: float) -> float:
        """Say when the step that runs is over, which is when a new job can begin."""
        if self.due_s < 0:
            return now_s
        if self._stretch == 1:
            return self.due_s
        return min(self.due_s, self._boundary_s(now_s))

    def submit(self, served: Served, now_s: float) -> bool:
        """Queue a job.

        Returns:
            Whether `due_s` has changed.
        """
        self.waiting.append(served)
        self.waiting_tokens += served.left_tokens
        if self.due_s < 0:
            self._begin_step(now_s)
            return True
        if self._stretch == 1 or self._blocked:
            return False
        # The decode step that runs is the last one of its stretch: then the job can begin.
        until = self._boundary_s(now_s)
        if until >= self.due_s:
            return False
        self._stretch = max(1, round((until - self._began_s) / self._step_s))
        self.due_s = until
        return True

    def _boundary_s(self, now_s: float) -> float:
        steps = int((now_s - self._began_s) / self._step_s) + 1
        return self._began_s + steps * self._step_s

    def step_over(self) -> None:
        """Take the results of the step that is over, tell of them, and begin the next."""
        now_s = self.due_s
        self._steps += self._stretch
        if self._touched:
            self._touched = False
            self._ears.stepped(now_s)
        for served in self._prefilled:
            served.began_s = now_s
            self._ears.began(served, now_s)
            last = self._steps + served.job.output_tokens - 1
            heapq.heappush(self._decoding, (last, served.job.number, served))
        self._prefilled.clear()
        while self._decoding and self._decoding[0][0] <= self._steps:
            served = heapq.heappop(self._decoding)[2]
            self.cache.release(served.job)
            served.ended_s = now_s
            self._ears.ended(served, now_s)
        self._begin_step(now_s)

    def _begin_step(self, now_s: float) -> None:
        decoding = len(self._decoding)
        prefill = self._plan(self.model.step_tokens_max - decoding)
        model = self.model
        step_s = prefill / model.prefill_tokens_per_s
        if decoding:
            step_s += (model.decode_step_ms + (decoding - 1) * model.decode_step_ms_per_job) / 1e3
        self._stretch = 1
        if not prefill:
            if not decoding:
                self.due_s = -1.0
                return
            self._stretch = self._decoding[0][0] - self._steps
        self.prefill_tokens += prefill
        self._began_s, self._step_s = now_s, step_s
        self.due_s = now_s + self._stretch * step_s

    def _plan(self, budget: int) -> int:
        """Give tokens of prompts to the next step: how many."""
        left = budget
        if self._partial is not None and left > 0:
            left -= self._compute(self._partial, left)
        self._blocked = False
        while self.waiting and left > 0:
            served = self.waiting[0]
            hit = self.cache.match(served.job)
            full = self.running >= self.model.jobs_max
            if full or not self.cache.admit(served.job):
                self._blocked = True
                break
            self.waiting.popleft()
            self.waiting_tokens -= served.left_tokens
            served.hit_tokens = hit * self.model.block_size
            served.left_tokens = served.job.prompt_tokens - served.hit_tokens
            self._touched = True
            left -= self._compute(served, left)
        return budget - left

    def _compute(self, served: Served, tokens_max: int) -> int:
        """Schedule the next tokens of a prompt; its blocks can be matched from here on."""
        tokens = min(served.left_tokens, tokens_max)
        done = served.job.prompt_tokens - served.left_tokens
        size = self.model.block_size
        served.left_tokens -= tokens
        self.cache.fill(served.job, done // size, (done + tokens) // size)
        self._touched = True
        if served.left_tokens:
            self._partial = served
        else:
            self._partial = None
            self._prefilled.append(served)
        return tokens

"""Steps in time: plan, wait as long as a model would compute, hand out tokens, publish events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kvatlas.common.clock import Clock
from kvatlas.common.settings import EngineSettings
from kvatlas.simulator.batching import Batcher, Sequence, Step
from kvatlas.simulator.block_pool import BlockPool, BlockTable
from kvatlas.simulator.events import Publisher
from kvatlas.simulator.generation import Answer
from kvatlas.simulator.metrics import EngineMetrics


@dataclass(frozen=True, slots=True)
class Spec:
    """A sequence to run.

    Attributes:
        prompt: token ids, at least one.
        salt: cache salt.
        lora: adapter, or None for the model itself.
        announces_hits: announce what it hits as if it were stored (`kv_cache_report_mode`).
    """

    prompt: list[int]
    salt: str | None
    answer: Answer
    lora: str | None = None
    announces_hits: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """A request in the engine: its sequences, and who waits for them.

    Attributes:
        progress: gets the number of a sequence each time that it has one more token.
        arrived: when, in seconds of the clock.
    """

    specs: list[Spec]
    sequences: list[Sequence]
    arrived: float
    progress: asyncio.Queue[int] = field(default_factory=asyncio.Queue)


class Scheduler:
    """Run sequences through the cache in steps. One task runs `run`."""

    def __init__(
        self,
        settings: EngineSettings,
        publisher: Publisher,
        metrics: EngineMetrics,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock
        self._pool = BlockPool(settings.num_blocks)
        self._batcher = Batcher(
            self._pool,
            max_sequences=settings.max_num_seqs,
            max_tokens=settings.max_num_batched_tokens,
        )
        self._owners: dict[Sequence, tuple[Run, int]] = {}
        self._work_came = asyncio.Event()
        metrics.watch(
            running=lambda: len(self._batcher.running),
            waiting=lambda: len(self._batcher.waiting),
            usage=lambda: self._pool.used_count / self._pool.usable,
        )

    def submit(self, specs: list[Spec]) -> Run:
        """Queue a request; whoever does so calls `leave` in the end."""
        sequences = [
            Sequence(
                BlockTable(
                    self._pool,
                    self._settings.block_size,
                    list(spec.prompt),
                    spec.salt,
                    spec.lora,
                    announces_hits=spec.announces_hits,
                ),
                spec.answer.tokens,
            )
            for spec in specs
        ]
        run = Run(specs, sequences, self._clock())
        for index, sequence in enumerate(sequences):
            self._owners[sequence] = (run, index)
            self._batcher.add(sequence)
        self._work_came.set()
        return run

    def leave(self, run: Run) -> None:
        """End what still runs of a request and free its blocks; after its end it does nothing."""
        for sequence in run.sequences:
            if self._owners.pop(sequence, None) is not None:
                self._batcher.end(sequence)
                self._metrics.sequence_ended("abort", self._clock() - run.arrived)

    def reset_cache(self) -> bool:
        """Forget the cache unless blocks are in use; the event goes out with the next step."""
        return self._pool.reset()

    async def run(self) -> None:
        """Step while there is work, sleep while there is none."""
        due = self._clock()
        while True:
            if not self._batcher.running and not self._batcher.waiting:
                self._work_came.clear()
                await self._work_came.wait()
                due = self._clock()
            step = self._batcher.plan()
            self._count_admitted(step)
            # From the last due time on: timers are late by a millisecond, which would add up.
            due = max(due + self._duration(step), self._clock())
            await asyncio.sleep(due - self._clock())
            advanced = self._batcher.finish(step)
            # Before the answers: who has read one finds its blocks announced.
            self._publisher.publish(self._pool.take_events())
            for sequence in advanced:
                self._deliver(sequence)

    def _duration(self, step: Step) -> float:
        """Compute the seconds that a step takes."""
        settings = self._settings
        seconds = step.prefill_tokens / settings.prefill_tokens_per_s
        if step.decoding:
            others = (step.decoding - 1) * settings.decode_step_ms_per_seq
            seconds += (settings.decode_step_ms + others) / 1_000
        return seconds / settings.time_scale

    def _count_admitted(self, step: Step) -> None:
        self._metrics.preempted(step.preempted)
        for sequence in step.admitted:
            self._metrics.prefill_started(sequence.prompt_tokens, sequence.cached_tokens or 0)

    def _deliver(self, sequence: Sequence) -> None:
        run, index = self._owners[sequence]
        self._metrics.token_generated()
        if sequence.generated == 1:
            seconds = self._clock() - run.arrived
            self._metrics.first_token_sent(sequence.prompt_tokens, seconds)
        if sequence.finished:
            del self._owners[sequence]
            reason = run.specs[index].answer.finish_reason
            self._metrics.sequence_ended(reason, self._clock() - run.arrived)
        run.progress.put_nowait(index)

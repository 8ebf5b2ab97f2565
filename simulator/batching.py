"""Continuous batching: which sequence computes how many tokens in the next step. Pure.

Running sequences go first, then waiting ones in order of arrival, while tokens, places and blocks
last. A running sequence that finds no block makes the youngest running one give up its blocks and
start over; its registered blocks stay cached, so it mostly comes back as a match.
Source: vllm/v1/core/sched/scheduler.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvatlas.simulator.block_pool import BlockPool, BlockTable


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and what is generated for it.

    Attributes:
        table: its tokens and blocks.
        output: all the tokens that it will generate, at least one.
        prompt_tokens: length of the prompt.
        cached_tokens: prompt tokens found in the cache when first scheduled; None before.
        generated: how many of `output` are out.
        finished: whether it has ended, by itself or by its client.
    """

    table: BlockTable
    output: tuple[int, ...]
    prompt_tokens: int = field(init=False)
    cached_tokens: int | None = None
    generated: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.table.tokens)

    @property
    def pending(self) -> int:
        """Count the tokens that are there, but not computed."""
        return len(self.table.tokens) - self.table.computed


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the model.

    Attributes:
        work: each sequence with the number of tokens that it computes.
        prefill_tokens: tokens of prompts (or recomputed ones) among them.
        decoding: sequences that compute one token at their end.
        preempted: sequences that gave up their blocks for this step.
        admitted: sequences that are scheduled for the first time.
    """

    work: tuple[tuple[Sequence, int], ...]
    prefill_tokens: int
    decoding: int
    preempted: int
    admitted: tuple[Sequence, ...]


class Batcher:
    """Queue sequences, plan steps and take their results.

    Args:
        max_sequences: sequences that run at once.
        max_tokens: tokens computed in one step.
    """

    def __init__(self, pool: BlockPool, *, max_sequences: int, max_tokens: int) -> None:
        self._pool = pool
        self._max_sequences = max_sequences
        self._max_tokens = max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit into the empty cache, or it waits for ever."""
        self.waiting.append(sequence)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks; again is harmless."""
        if sequence.finished:
            return
        sequence.finished = True
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.table.free()

    def plan(self) -> Step:
        """Decide the next step; blocks are taken, and full ones registered, here."""
        work, preempted = self._plan_running()
        admitted: list[Sequence] = []
        if not preempted:
            used = sum(count for _, count in work)
            work.extend(self._plan_waiting(self._max_tokens - used, admitted))
        decoding = sum(1 for sequence, _ in work if _decodes(sequence))
        total = sum(count for _, count in work)
        return Step(tuple(work), total - decoding, decoding, preempted, tuple(admitted))

    def finish(self, step: Step) -> list[Sequence]:
        """Take the results of a step; who is caught up gets its next token, and is returned."""
        advanced = []
        for sequence, count in step.work:
            if sequence.finished:
                continue
            sequence.table.computed += count
            if sequence.pending:
                continue
            sequence.table.tokens.append(sequence.output[sequence.generated])
            sequence.generated += 1
            advanced.append(sequence)
            if sequence.generated == len(sequence.output):
                self.end(sequence)
        return advanced

    def _plan_running(self) -> tuple[list[tuple[Sequence, int]], int]:
        work: list[tuple[Sequence, int]] = []
        budget, preempted, at = self._max_tokens, 0, 0
        while at < len(self.running) and budget:
            sequence = self.running[at]
            count = min(sequence.pending, budget)
            while not (grown := sequence.table.grow(count)):
                preempted += 1
                if self._preempt_youngest() is sequence:
                    break
            if not grown:
                break
            work.append((sequence, count))
            budget -= count
            at += 1
        return work, preempted

    def _preempt_youngest(self) -> Sequence:
        sequence = self.running.pop()
        sequence.table.free()
        self.waiting.appendleft(sequence)
        return sequence

    def _plan_waiting(
        self, budget: int, admitted: list[Sequence]
    ) -> Iterator[tuple[Sequence, int]]:
        while self.waiting and budget > 0 and len(self.running) < self._max_sequences:
            sequence = self.waiting[0]
            table = sequence.table
            matched = table.match()
            cached = len(matched) * table.block_size
            count = min(len(table.tokens) - cached, budget)
            if not table.grow(count, matched):
                return
            if sequence.cached_tokens is None:
                sequence.cached_tokens = cached
                admitted.append(sequence)
            self.running.append(self.waiting.popleft())
            budget -= count
            yield sequence, count


def _decodes(sequence: Sequence) -> bool:
    return sequence.generated > 0 and sequence.pending == 1

"""Which sequence computes what in a step."""

from __future__ import annotations

from kvatlas.simulator.batching import Batcher, Sequence, Step
from kvatlas.simulator.block_pool import BlockPool, BlockTable

SIZE = 4


class Machine:
    """A pool, a batcher, and sequences with recognisable tokens."""

    def __init__(self, blocks: int = 33, sequences: int = 8, tokens: int = 64) -> None:
        self.pool = BlockPool(blocks)
        self.batcher = Batcher(self.pool, max_sequences=sequences, max_tokens=tokens)

    def add(self, prompt: int, output: int = 3, first: int = 0) -> Sequence:
        """Queue a sequence of consecutive tokens."""
        tokens = list(range(first, first + prompt))
        sequence = Sequence(BlockTable(self.pool, SIZE, tokens), tuple(range(output)))
        self.batcher.add(sequence)
        return sequence

    def step(self) -> Step:
        """Plan a step and take its results."""
        step = self.batcher.plan()
        self.batcher.finish(step)
        return step


def counts(step: Step) -> list[int]:
    """Give the tokens of each sequence in a step."""
    return [count for _, count in step.work]


def test_long_prompt_is_computed_in_chunks() -> None:
    """A prompt over the budget takes several steps; its first token comes with the last one."""
    machine = Machine(tokens=10)
    sequence = machine.add(prompt=25)
    assert [counts(machine.step()) for _ in range(3)] == [[10], [10], [5]]
    assert sequence.generated == 1
    decode = machine.step()
    assert (counts(decode), decode.prefill_tokens, decode.decoding) == ([1], 0, 1)


def test_running_go_before_waiting() -> None:
    """Sequences that generate get their token first; what is left of the budget prefills."""
    machine = Machine(tokens=10)
    machine.add(prompt=8)
    machine.step()
    machine.add(prompt=30, first=100)
    step = machine.step()
    assert counts(step) == [1, 9]
    assert (step.prefill_tokens, step.decoding) == (9, 1)


def test_places_are_limited() -> None:
    """More sequences than places wait, in order of arrival."""
    machine = Machine(sequences=2)
    first, second, third = (machine.add(prompt=5, output=2, first=10 * n) for n in range(3))
    assert [sequence for sequence, _ in machine.step().work] == [first, second]
    assert list(machine.batcher.waiting) == [third]
    machine.step()
    assert [sequence for sequence, _ in machine.step().work] == [third]


def test_second_of_equal_prompts_finds_the_first_ones_blocks() -> None:
    """Within a step blocks are findable as soon as their tokens are scheduled."""
    machine = Machine()
    machine.add(prompt=17)
    second = machine.add(prompt=17)
    step = machine.step()
    assert counts(step) == [17, 1]
    assert second.cached_tokens == 16
    assert machine.pool.used_count == 6


def test_youngest_gives_way_and_comes_back_as_a_match() -> None:
    """Out of blocks, the youngest loses its own, and later finds what was not overwritten."""
    machine = Machine(blocks=7)
    old = machine.add(prompt=12, output=9)
    young = machine.add(prompt=11, output=5, first=100)
    assert counts(machine.step()) == [12, 11]
    step = machine.step()
    assert (step.preempted, [sequence for sequence, _ in step.work]) == (1, [old])
    assert list(machine.batcher.waiting) == [young]
    while not old.finished:
        assert [sequence for sequence, _ in machine.step().work] == [old]
    # One of its two full blocks was taken for the other's last one.
    assert machine.step().work == ((young, 8),)
    while not young.finished:
        machine.step()
    assert (old.generated, young.generated, young.cached_tokens) == (9, 5, 0)
    assert machine.pool.used_count == 0


def test_whoever_arrives_waits_for_blocks() -> None:
    """A prompt that does not fit beside those running waits and takes nothing."""
    machine = Machine(blocks=7)
    machine.add(prompt=20, output=2)
    waiting = machine.add(prompt=9, output=1, first=100)
    machine.step()
    assert (waiting.cached_tokens, machine.pool.used_count) == (None, 5)
    machine.step()
    machine.step()
    assert waiting.finished


def test_ended_sequence_is_taken_out_wherever_it_is() -> None:
    """Ending twice is harmless, and a step under way leaves out who ended meanwhile."""
    machine = Machine(sequences=1)
    running, waiting = machine.add(prompt=9), machine.add(prompt=9, first=50)
    step = machine.batcher.plan()
    for sequence in (waiting, running, running):
        machine.batcher.end(sequence)
    assert machine.batcher.finish(step) == []
    assert (machine.batcher.running, list(machine.batcher.waiting)) == ([], [])
    assert machine.pool.used_count == 0


def test_match_counts_against_what_is_free() -> None:
    """Free blocks that a match will use cannot also be had as new ones."""
    pool = BlockPool(5)
    first = BlockTable(pool, SIZE, list(range(8)))
    assert first.grow(8)
    first.free()
    other = BlockTable(pool, SIZE, list(range(100, 108)))
    assert other.grow(8)
    longer = BlockTable(pool, SIZE, list(range(12)))
    matched = longer.match()
    assert len(matched) == 2
    assert not longer.grow(4, matched)
    assert longer.blocks == []
    assert pool.free_count == 2

"""The planner's engine: times that can be worked out by hand, and what the index hears."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.planner.engine import Ears, Engine, EngineModel, Served
from kvatlas.planner.index import Index
from kvatlas.planner.jobs import Job, make_jobs
from kvatlas.planner.trace import ID_TOKENS, Record

MODEL = EngineModel(
    prefill_tokens_per_s=1_000.0,
    decode_step_ms=10.0,
    decode_step_ms_per_job=2.0,
    step_tokens_max=1_024,
    jobs_max=4,
    cache_blocks=1_000,
)


class Driven:
    """An engine, driven to its end, and what it tells."""

    def __init__(self, model: EngineModel = MODEL) -> None:
        self.index = Index(0.5)
        self.told: list[tuple[str, int, Any]] = []
        self.engine = Engine(
            model,
            Ears(
                began=lambda served, at: self.told.append(("began", served.job.number, at)),
                ended=lambda served, at: self.told.append(("ended", served.job.number, at)),
                cached=lambda run, count: self.index.changed(0, run, count),
                stepped=lambda at: self.index.stepped(0, at),
            ),
        )

    def send(self, job: Job, at_s: float) -> Served:
        """Let a job come; what is over by then is over."""
        while 0.0 <= self.engine.due_s <= at_s:
            self.engine.step_over()
        served = Served(job, 0, at_s, job.prompt_tokens, job.prompt_tokens)
        self.engine.submit(served, at_s)
        return served

    def finish(self) -> None:
        """Run until nothing is left."""
        while self.engine.due_s >= 0.0:
            self.engine.step_over()


def jobs_of(*shapes: tuple[int, int, int]) -> list[Job]:
    """Make jobs of tokens in, tokens out, and the id that their prompts begin with."""
    records = [
        Record(0.0, prompt, output, (head, *range(9, 8 + -(-prompt // ID_TOKENS))))
        for prompt, output, head in shapes
    ]
    return make_jobs(records, 16, [0.0] * len(records))


def test_one_job_takes_its_prompt_and_its_tokens() -> None:
    """Expect prefill / rate to the first token, and a decode step for each further one."""
    driven, (job,) = Driven(), jobs_of((500, 11, 1))
    served = driven.send(job, 1.0)
    driven.finish()
    assert served.began_s == pytest.approx(1.5)
    assert served.ended_s == pytest.approx(1.5 + 10 * 0.010)


def test_an_answer_of_one_token_ends_as_it_begins() -> None:
    """Expect no decode step."""
    driven, (job,) = Driven(), jobs_of((500, 1, 1))
    served = driven.send(job, 0.0)
    driven.finish()
    assert served.began_s == served.ended_s == pytest.approx(0.5)


def test_prompts_are_computed_in_chunks_one_after_the_other() -> None:
    """Expect 1,024 tokens per step: 2,000 in two, of which the second takes the next one along."""
    driven, (long, short) = Driven(), jobs_of((2_000, 1, 1), (48, 1, 2))
    first, second = driven.send(long, 0.0), driven.send(short, 0.0)
    driven.finish()
    assert first.began_s == second.began_s == pytest.approx(2.048)


def test_decoding_slows_prefill_and_takes_of_its_tokens() -> None:
    """Expect a step to be as long as both, with one token of the budget for the one decoding."""
    driven, (first, second) = Driven(), jobs_of((100, 50, 1), (1_500, 1, 2))
    driven.send(first, 0.0)
    served = driven.send(second, 0.1)
    driven.finish()
    assert served.began_s == pytest.approx(0.1 + 0.010 + 1.023 + 0.010 + 0.477 + 0.010)


def test_many_decode_steps_are_one_until_somebody_comes() -> None:
    """Expect a job that comes within a step to begin when that is over."""
    driven, (first, second) = Driven(), jobs_of((100, 1_000, 1), (100, 2, 2))
    driven.send(first, 0.0)
    served = driven.send(second, 0.1 + 0.055)
    assert driven.engine.due_s == pytest.approx(0.16)
    driven.finish()
    assert served.began_s == pytest.approx(0.16 + 0.1 + 0.010)
    assert served.ended_s == pytest.approx(served.began_s + 0.012)


def test_two_decode_as_many_steps_as_each_needs() -> None:
    """Expect the step to shrink when one has ended."""
    driven, (first, second) = Driven(), jobs_of((100, 4, 1), (100, 6, 2))
    driven.send(first, 0.0)
    driven.send(second, 0.0)
    driven.finish()
    assert driven.told == [
        ("began", 0, pytest.approx(0.1)),
        ("began", 1, pytest.approx(0.1 + 0.1 + 0.010)),
        ("ended", 0, pytest.approx(0.21 + 2 * 0.012)),
        ("ended", 1, pytest.approx(0.234 + 3 * 0.010)),
    ]


def test_a_prefix_is_computed_once() -> None:
    """Expect the second to find what is scheduled in the very same step."""
    driven, (first, second) = Driven(), jobs_of((600, 1, 1), (600, 1, 1))
    driven.send(first, 0.0)
    served = driven.send(second, 0.0)
    driven.finish()
    assert served.hit_tokens == 37 * 16 == 592
    assert served.began_s == pytest.approx(0.608)


def test_who_finds_no_room_waits_for_who_ends() -> None:
    """Expect the second to begin after the end of the first where the cache holds one."""
    driven = Driven(EngineModel(1_000.0, 10.0, 2.0, 1_024, 4, cache_blocks=40))
    first, second = jobs_of((480, 11, 1), (480, 1, 2))
    driven.send(first, 0.0)
    served = driven.send(second, 0.0)
    assert (driven.engine.running, len(driven.engine.waiting)) == (1, 1)
    driven.finish()
    assert served.began_s == pytest.approx(0.48 + 0.1 + 0.48)


def test_no_more_run_at_once_than_may() -> None:
    """Expect the fifth of five to wait for an end."""
    driven, jobs = Driven(), jobs_of(*((16, 11, head) for head in range(5)))
    served = [driven.send(job, 0.0) for job in jobs]
    driven.finish()
    assert max(one.began_s for one in served[:4]) < min(one.ended_s for one in served)
    assert served[4].began_s > served[0].ended_s


def test_the_index_hears_at_the_end_of_a_step_and_later() -> None:
    """Expect the chunk of the first step half a second after its end, and no sooner."""
    driven, (job,) = Driven(), jobs_of((2_000, 1, 1))
    driven.send(job, 0.0)
    driven.finish()
    assert driven.index.match(job, 1.523) == {}
    assert driven.index.match(job, 1.525) == {0: 1_024 // 16}
    assert driven.index.match(job, 2.6) == {0: 125}


def test_it_says_when_a_new_job_could_begin() -> None:
    """Expect now when idle, the end of a step with prefill, the end of a decode step."""
    driven, (first, second) = Driven(), jobs_of((100, 1_000, 1), (100, 2, 2))
    assert driven.engine.busy_until_s(7.0) == 7.0
    driven.send(first, 8.0)
    assert driven.engine.busy_until_s(8.05) == pytest.approx(8.1)
    driven.send(second, 8.155)
    assert driven.engine.busy_until_s(8.157) == pytest.approx(8.16)

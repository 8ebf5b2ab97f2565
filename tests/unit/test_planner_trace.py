"""Traces: lines that are checked, prompts as runs, made traffic, cuts."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.errors import ConfigError
from kvatlas.planner.engine import EngineModel
from kvatlas.planner.jobs import Job, ceiling, copied, make_jobs
from kvatlas.planner.makers import MAKERS, made
from kvatlas.planner.plan import Cut, jobs_of, records_of
from kvatlas.planner.trace import ID_TOKENS, Record, read_trace

GOOD: dict[str, Any] = {
    "timestamp": 5,
    "input_length": 600,
    "output_length": 2,
    "hash_ids": [7, 8],
}


def line(**changes: Any) -> bytes:
    """Write a line of a trace."""
    return json.dumps({**GOOD, **changes}).encode()


def test_lines_become_records() -> None:
    """Expect the fields of each line, and empty lines to be skipped."""
    assert read_trace("t", [line(), b"\n", line(timestamp=6)]) == [
        Record(5.0, 600, 2, (7, 8)),
        Record(6.0, 600, 2, (7, 8)),
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (line(timestamp=-1), "timestamp is not a whole number of 0 or more"),
        (line(timestamp=1.5), "timestamp is not a whole number of 0 or more"),
        (line(timestamp=4), "timestamp is before that of the line above"),
        (line(input_length=True), "input_length is not a whole number of 0 or more"),
        (line(input_length=0), "input_length is not between 1 and 10000000"),
        (line(output_length=0), "output_length is not between 1 and 10000000"),
        (line(hash_ids=None), "hash_ids is not a list of integers"),
        (line(hash_ids=[1, "2"]), "hash_ids is not a list of integers"),
        (line(hash_ids=[1]), "hash_ids has 1 ids, 600 tokens make 2"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(wrong: bytes, told: str) -> None:
    """Expect the name of the trace, the line, and what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        read_trace("t", [line(), b"", wrong])
    assert caught.value.faults == [f"t, line 3: {told}"]


def test_a_trace_holds_something() -> None:
    """Expect an empty one to be refused."""
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace("t", [b"\n"])


def jobs_from(*prompts: tuple[int, tuple[int, ...]]) -> list[Job]:
    """Make jobs of prompts with so many tokens and ids, in blocks of 16."""
    records = [Record(0.0, tokens, 5, ids) for tokens, ids in prompts]
    return make_jobs(records, 16, [0.0] * len(records))


def test_prompts_share_runs_where_they_share_blocks() -> None:
    """Expect a run up to where two prompts part, and one for the rest of each."""
    first, second = jobs_from((2 * ID_TOKENS, (1, 2)), (ID_TOKENS + 40, (1, 3)))
    assert [(run.start, run.length) for run in first.runs] == [(0, 32), (32, 32)]
    assert [(run.start, run.length) for run in second.runs] == [(0, 32), (32, 2)]
    assert first.runs[0] is second.runs[0]
    assert first.runs[1].number != second.runs[1].number


def test_the_last_id_of_another_length_is_another_block() -> None:
    """Expect no sharing of a block that is whole in one prompt and begun in another."""
    first, second = jobs_from((ID_TOKENS, (1,)), (100, (1,)))
    assert {run.number for run in first.runs}.isdisjoint(run.number for run in second.runs)


def test_a_job_knows_its_blocks() -> None:
    """Expect full blocks, those that a cache can serve, and those that it needs."""
    whole, short = jobs_from((64, (1,)), (10, (2,)))
    assert (whole.blocks, whole.usable_blocks, whole.room_blocks) == (4, 3, 5)
    assert (short.blocks, short.usable_blocks, short.room_blocks, short.runs) == (0, 0, 1, ())


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 512)),
        min_size=1,
        max_size=12,
    )
)
def test_runs_are_the_blocks(prompts: list[tuple[list[int], int]]) -> None:
    """Expect two prompts to share as many blocks in runs as they do block by block."""
    jobs = jobs_from(*(((len(ids) - 1) * ID_TOKENS + rest, tuple(ids)) for ids, rest in prompts))
    chains = [_blocks(ids, rest) for ids, rest in prompts]
    for job, chain in zip(jobs, chains, strict=True):
        assert sum(run.length for run in job.runs) == job.blocks == len(chain)
        for other, its in zip(jobs, chains, strict=True):
            shared = sum(run.length for run in job.runs if run in other.runs)
            assert shared == len(set(chain) & set(its))


def _blocks(ids: list[int], rest: int) -> list[object]:
    """Write a chain out: each block named by everything before it."""
    chain: list[object] = []
    for place in range(len(ids)):
        tokens = rest if place == len(ids) - 1 else ID_TOKENS
        head = (tuple(ids[: place + 1]), tokens)
        chain += [(head, number) for number in range(tokens // 16)]
    return chain


def test_the_ceiling_is_what_came_before() -> None:
    """Expect the share of tokens that an endless cache has; a last token is always computed."""
    jobs = jobs_from((ID_TOKENS, (1,)), (ID_TOKENS, (1,)))
    assert ceiling(jobs, 16) == (ID_TOKENS - 16) / (2 * ID_TOKENS)


def test_copies_share_only_what_most_share() -> None:
    """Expect the common head in all copies, and the rest of each to be its own."""
    jobs = jobs_from((ID_TOKENS * 2, (1, 2)), (ID_TOKENS * 2, (1, 3)))
    laid = copied([jobs[0], jobs[1], *jobs_from((600, (9, 9)))], 2, [0.0, 1.0])
    assert [job.number for job in laid] == list(range(6))
    heads = {job.runs[0].number for job in laid if job.prompt_tokens == 2 * ID_TOKENS}
    tails = {job.runs[1].number for job in laid if job.prompt_tokens == 2 * ID_TOKENS}
    assert (len(heads), len(tails)) == (1, 4)


@pytest.mark.parametrize("name", MAKERS)
def test_made_traces_are_traces(name: str) -> None:
    """Expect the same trace of the same seed, and lines that the reader takes."""
    records = made(name, 60, Random(3))
    assert records == made(name, 60, Random(3)) != made(name, 60, Random(4))
    assert all(a.at_ms <= b.at_ms for a, b in pairwise(records))
    for record in records:
        assert len(record.hash_ids) == -(-record.prompt_tokens // ID_TOKENS)
        assert record.output_tokens >= 1


def test_made_traces_reuse_what_they_should() -> None:
    """Expect nothing to be shared without reuse, and most of it elsewhere."""
    shares = {
        name: ceiling(make_jobs(r := made(name, 400, Random(1)), 16, [0.0] * len(r)), 16)
        for name in MAKERS
    }
    assert shares.pop("no-reuse") == 0.0
    assert min(shares.values()) > 0.4


def cut_of(cut: Cut, *at_ms: int) -> list[float]:
    """Cut a trace with requests at some times; give when its jobs come."""
    lines = [line(timestamp=each) for each in at_ms]
    records = records_of("t", cut, Random(1), lambda: lines)
    return [job.at_s for job in jobs_of(records, cut, EngineModel(), Random(1))]


def test_cuts_begin_at_nought_and_speed_up() -> None:
    """Expect the slice of the trace's clock, from 0, faster, and no more than asked for."""
    cut = Cut(requests=2, start_s=1.0, duration_s=5.0, speedup=2.0)
    assert cut_of(cut, 0, 1_000, 3_000, 4_000, 6_000) == [0.0, 1.0]


def test_spreading_keeps_the_order_of_time() -> None:
    """Expect requests of one tick to come one after the other."""
    times = cut_of(Cut(spread_ms=1_000.0), *[0] * 9)
    assert times == sorted(times)
    assert len(set(times)) == 9
    assert times[-1] < 1.0


def test_copies_fill_the_same_time() -> None:
    """Expect all requests of all copies within the time of the trace."""
    times = cut_of(Cut(copies=3), 0, 1_000, 2_000)
    assert len(times) == 9
    assert max(times) <= 2.0


@pytest.mark.parametrize(
    ("name", "cut", "engine", "told"),
    [
        ("made:x", Cut(), EngineModel(), "--trace made:x: is none of made:documents"),
        ("t", Cut(start_s=9.0), EngineModel(), "t: no request between --start-s"),
        ("t", Cut(), EngineModel(block_size=24), "--block-size 24: does not divide 512"),
        ("t", Cut(), EngineModel(cache_blocks=9), "--cache-blocks 9: a request of 600 and 2"),
    ],
)
def test_what_cannot_be_played_is_told(name: str, cut: Cut, engine: EngineModel, told: str) -> None:
    """Expect the option at fault."""
    with pytest.raises(ConfigError) as caught:
        jobs_of(records_of(name, cut, Random(1), lambda: [line()]), cut, engine, Random(1))
    assert caught.value.faults[0].startswith(told)

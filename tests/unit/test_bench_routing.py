"""The pure parts of `make bench-routing`: slices, prompts, figures, the ring."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.routing.bounds import Bounds
from bench.routing.figures import Outcome, Spread, balance, latency, spreads
from bench.routing.load import Answer
from bench.routing.prompts import PromptMaker
from bench.routing.ring import LOAD_FACTOR, Ring
from bench.routing.site import Model
from bench.routing.trace import Arrival, Slice, scaled
from bench.routing.words import demo_words
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from kvatlas.planner.trace import Record

PER_ID = 64


@pytest.fixture(scope="module")
def words() -> list[str]:
    """Give the words of all prompts."""
    return demo_words()


def record(at_s: float, prompt: int = 512, output: int = 8) -> Record:
    """Write a request of a trace."""
    return Record(at_s * 1e3, prompt, output, tuple(range(-(-prompt // 512))))


def test_slice_keeps_times_between_arrivals_at_the_rate() -> None:
    """A rate of 2 halves the times between arrivals; what is outside the slice is left out."""
    part = Slice(start_s=10.0, length_s=10.0, rate=2.0)
    records = part.records([record(at) for at in (9.9, 10.0, 13.0, 29.9, 30.0)])
    assert [part.due_s(each) for each in records] == pytest.approx([0.0, 1.5, 9.95])


@pytest.mark.parametrize(("given", "expected"), [((513, 1), (65, 1)), ((1_024, 17), (128, 3))])
def test_lengths_are_scaled_up_rather_than_down(
    given: tuple[int, int], expected: tuple[int, int]
) -> None:
    """With 64 tokens for 512 lengths are an eighth, and the last id keeps a token at least."""
    arrival = scaled(record(0.0, *given), 0.0, PER_ID)
    assert (arrival.prompt_tokens, arrival.answer_tokens) == expected


def test_saturation_is_where_the_oracle_falls_under_its_goodput() -> None:
    """One engine that prefills two prompts in a second, and a prompt a second in the trace."""
    model = Model(engines=1, prefill_tokens_per_s=1_024.0, decode_step_ms=0.0, cache_tokens=2_048)
    # No two prompts share anything.
    trace = [Record(at * 1e3, 512, 1, (at,)) for at in range(600)]
    bounds = Bounds(trace, model, limit_s=1.0)
    full = bounds.saturation(Slice(0.0, 60.0, 1.0))
    assert full == pytest.approx(2.0, abs=0.1)
    assert bounds.oracle(Slice(0.0, 60.0, full - 0.1)).goodput >= 0.95


def test_prompt_has_the_tokens_of_the_trace_and_equal_ids_give_equal_prefixes(
    words: list[str],
) -> None:
    """Token by token, as the demo model's tokenizer reads them in a chat."""
    prompts = PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))
    maker = PromptMaker(words, PER_ID)

    def tokens(arrival: Arrival) -> list[int]:
        body = orjson.loads(maker.chat("demo", arrival))
        return list(prompts.tokenize(prompts.prepare(CHAT_PATH, body)).sequences[0])

    one = tokens(Arrival(0.0, 150, 5, (7, 8, 9)))
    two = tokens(Arrival(0.0, 190, 5, (7, 8, 10)))
    frame = len(tokens(Arrival(0.0, 1, 5, (7,)))) - 1
    assert (len(one), len(two)) == (150 + frame, 190 + frame)
    same = next(at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert 2 * PER_ID <= same < 2 * PER_ID + 16, "a block more than the ids that are shared"


def test_prompt_is_the_same_in_every_process(words: list[str]) -> None:
    """The text is drawn from the id alone."""
    assert PromptMaker(words, PER_ID).text((1, 2), 70) == PromptMaker(words, PER_ID).text(
        (1, 2), 70
    )
    assert PromptMaker(words, PER_ID).text((1,), 60) != PromptMaker(words, PER_ID).text((2,), 60)


def test_times_count_from_when_a_request_was_due() -> None:
    """Sent 2 s late and answered at once is a TTFT of 2 s: no coordinated omission."""
    late = Outcome(due_s=1.0, sent_s=3.0, first_s=3.0, end_s=4.0, fault=None)
    found = latency([late], limit_s=1.5, length_s=10.0)
    assert (found["ttft_mean_s"], found["sent_late_p99_s"], found["good_per_s"]) == (2.0, 2.0, 0.0)


def test_failed_request_is_no_good_one_and_has_no_ttft() -> None:
    """A stream that broke off is an error, however early its first text was."""
    fine = Outcome(0.0, 0.0, 0.5, 1.0, None)
    cut_off = Outcome(0.0, 0.0, 0.1, 1.0, "unfinished")
    found = latency([fine, cut_off], limit_s=1.0, length_s=2.0)
    assert (found["errors"], found["ttft_mean_s"], found["good_per_s"]) == (1, 0.5, 0.5)


def test_balance_compares_with_the_mean() -> None:
    """The busiest engine of three has half as much again as the mean."""
    assert balance([1.0, 2.0, 3.0]) == {"max_of_mean": 1.5, "min_of_mean": 0.5}


def test_spreads_give_medians_and_ends_of_what_all_runs_have() -> None:
    """A figure that one run lacks is left out."""
    found = spreads([{"a": 3.0, "b": 1.0}, {"a": 1.0}, {"a": 2.0}])
    assert found == {"a": Spread(2.0, 1.0, 3.0)}


def test_ring_sends_a_key_to_the_same_endpoint_while_it_has_room() -> None:
    """And different keys to different ones."""
    ring = Ring(["a", "b", "c"])
    assert len({ring.choose(b"key", {}) for _ in range(10)}) == 1
    assert len({ring.choose(b"%d" % number, {}) for number in range(100)}) == 3


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=200))
def test_ring_keeps_every_load_under_its_bound(keys: list[bytes]) -> None:
    """However few the keys: no endpoint has more than 125 % of the mean, rounded up."""
    ring, loads = Ring(["a", "b", "c"], points=8), dict.fromkeys("abc", 0)
    for key in keys:
        loads[ring.choose(key, loads)] += 1
    assert max(loads.values()) <= math.ceil(LOAD_FACTOR * len(keys) / 3)


def _chunk(**delta: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"


def test_answer_begins_with_its_first_text_not_with_its_role() -> None:
    """Chunks may come torn at any byte."""
    answer, at = Answer(), 0.0
    stream = _chunk(role="assistant", content="") + _chunk(content=" a") + _chunk(content=" b")
    first_text_whole = stream.index(b" a") + len(b' a"}}]}\n\n')
    for byte in stream:
        at += 1.0
        answer.take(bytes([byte]), at)
    assert answer.first == first_text_whole
    assert answer.fault == "unfinished"


def test_comments_in_a_stream_are_no_answer() -> None:
    """SMG sends some while a request waits."""
    answer = Answer()
    answer.take(b": keep-alive\n\n", 1.0)
    answer.take(_chunk(content=" a") + b":\n\ndata: [DONE]\n\n", 2.0)
    assert (answer.first, answer.fault) == (2.0, None)


def test_answer_tells_usage_and_is_whole_with_done() -> None:
    """Without the mark of its end a stream counts as broken off."""
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    answer = Answer()
    answer.take(_chunk(content=" a"), 1.0)
    last = orjson.dumps({"choices": [], "usage": usage})
    answer.take(b"data: " + last + b"\n\ndata: [DONE]\n\n", 2.0)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.answer_tokens) == (9, 4, 2)
    assert answer.fault is None

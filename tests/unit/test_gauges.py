"""Gauges: what a metrics page says, and how it is written for others."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.gauges import Adapters, EngineGauges, Look, Sample, SharedSample
from kvatlas.common.metrics_page import read_gauges, read_process_start

LORA = (
    b'vllm:lora_requests_info{max_lora="%d",running_lora_adapters="%s",waiting_lora_adapters="%s"}'
    b" %s\n"
)


# --- metrics pages ------------------------------------------------------------------------------


def test_a_page_is_read_by_rank() -> None:
    """Expect each rank's own numbers, wherever its label stands."""
    page = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{model_name="m",engine="1"} 4.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="32",engine="1",hash_block_size="None",num_gpu_blocks="24"} 1.0
"""
    assert read_gauges(page) == {
        0: EngineGauges(running=3.0, kv_usage=0.25),
        1: EngineGauges(running=4.0, waiting=2.0, block_size=32, blocks=24),
    }


def test_the_page_of_a_real_engine_is_read(shared: Path) -> None:
    """Expect the idle vLLM of the captures with its 24 blocks of 32 tokens."""
    page = (shared / "data" / "vllm-events" / "metrics_sample.txt").read_bytes()
    assert read_gauges(page) == {0: EngineGauges(block_size=32, blocks=24)}


def test_the_size_that_hashes_are_made_for_goes_first() -> None:
    """Expect hash_block_size where an engine names one, wherever it stands."""
    for labels in (
        b'block_size="16",hash_block_size="64"',
        b'hash_block_size="64",block_size="16"',
    ):
        assert read_gauges(b"vllm:cache_config_info{%s} 1.0" % labels)[0].block_size == 64


@pytest.mark.parametrize(
    "labels",
    [
        b'effective_attention_block_size="48"',
        b'block_size="None"',
        b'block_size="0"',
        b'block_size="%d"' % (limits.BLOCK_SIZE_MAX + 1),
    ],
)
def test_a_size_that_is_none_is_not_learned(labels: bytes) -> None:
    """Expect no block size from other labels, words, or numbers out of range."""
    found = read_gauges(b"vllm:cache_config_info{%s} 1.0" % labels)
    assert found.get(0, EngineGauges()).block_size is None


@pytest.mark.parametrize("number", [b"nan", b"-1", b"+Inf", b"1e300", b"three", b""])
def test_an_absurd_number_counts_as_none(number: bytes) -> None:
    """Expect zero for what no gauge can be."""
    page = b'vllm:num_requests_running{engine="0"} %s\n' % number
    assert read_gauges(page).get(0, EngineGauges()).running == 0.0


def test_a_metric_without_labels_is_rank_0() -> None:
    """Expect engines that label nothing to be read, and the last line to need no end."""
    assert read_gauges(b"vllm:num_requests_running 2.0") == {0: EngineGauges(running=2.0)}


@given(st.binary(max_size=300))
def test_no_page_is_too_odd(noise: bytes) -> None:
    """Expect any bytes around and inside of samples to be read without an error."""
    read_gauges(noise)
    read_gauges(b"vllm:num_requests_running" + noise)
    read_gauges(b"vllm:cache_config_info{" + noise + b'block_size="1' + noise)


def test_adapters_are_read_from_the_newest_series() -> None:
    """Expect each rank to get them, with names as they were before they were escaped."""
    page = (
        LORA % (4, b"old", b"", b"1.7e+09")
        + LORA % (4, b'sql, chat "x"\\\\'.replace(b'"', b'\\"'), b"z", b"1.8e+09")
        + LORA % (4, b"older", b"", b"1.6e+09")
        + LORA % (4, b"broken", b"", b"nan")
    )
    adapters = Adapters(frozenset({"sql", 'chat "x"\\'}), frozenset("z"), 4)
    assert read_gauges(page) == {0: EngineGauges(adapters=adapters)}
    running = b'vllm:num_requests_running{engine="%d"} 1.0\n'
    ranks = read_gauges(page + running % 0 + running % 1)
    assert [ranks[rank].adapters for rank in (0, 1)] == [adapters] * 2


def test_many_adapters_are_cut() -> None:
    """Expect as many as are bounded, and none whose name is too long for one."""
    long, many = b"x" * (limits.MODEL_NAME_CHARS_MAX + 1), b",".join(b"%d" % n for n in range(999))
    found = read_gauges(LORA % (4, long + b"," + many, b"", b"1.0"))[0].adapters
    assert len(found.running) == limits.GAUGE_ADAPTERS_MAX
    assert max(map(len, found.running)) < 3


def test_when_a_process_began_is_read_in_its_own_words() -> None:
    """Expect no number to be made of it, and None where nothing tells."""
    assert read_process_start(b"process_start_time_seconds 1.79e+09\n") == "1.79e+09"
    assert read_process_start(b"python_info 1.0\n") is None
    assert read_process_start(b"process_start_time_seconds \xff\n") == "\ufffd"


def test_a_look_tells_whether_there_is_work() -> None:
    """Expect a silent engine and one without a page to have none."""
    waiting = {0: EngineGauges(), 1: EngineGauges(waiting=1.0)}
    looks = [
        Look("silent", 0.0), Look("no_page", 0.0),
        Look("answered", 0.0, None, {0: EngineGauges(kv_usage=0.5)}),
        Look("answered", 0.0, None, waiting),
    ]  # fmt: skip
    assert [look.has_work for look in looks] == [False, False, False, True]
    assert [look.sample(1).is_up for look in looks] == [False, True, True, True]


# --- texts for others ---------------------------------------------------------------------------


NAMES = st.frozensets(st.text(min_size=1, max_size=20), max_size=4)
GAUGES = st.builds(
    EngineGauges,
    running=st.integers(0, 100_000).map(float),
    waiting=st.integers(0, 100_000).map(float),
    kv_usage=st.integers(0, 1_000).map(lambda n: n / 1_000),
    block_size=st.none() | st.integers(1, limits.BLOCK_SIZE_MAX),
    blocks=st.none() | st.integers(1, 10_000_000),
    adapters=st.builds(Adapters, NAMES, NAMES, st.integers(0, 64)),
)
UP = st.builds(
    partial(Sample, is_up=True), start=st.none() | st.text(min_size=1, max_size=32), gauges=GAUGES
)


@given(st.integers(0, 10**14), st.integers(0, 60_000), UP | st.just(Sample(is_up=False)))
def test_what_is_written_is_what_is_read(at_ms: int, every_ms: int, sample: Sample) -> None:
    """Whatever names adapters have."""
    shared = SharedSample(at_ms, every_ms, sample)
    assert SharedSample.from_text(shared.to_text()) == shared


def test_a_text_looks_like_this() -> None:
    """As docs/REDIS.md has it; names cannot break it."""
    adapters = Adapters(frozenset({"a b", "c,d"}), frozenset({"up=0"}), 4)
    gauges = EngineGauges(3.0, 1.0, 0.125, 16, 4_096, adapters)
    up = SharedSample(1795427131482, 200, Sample(is_up=True, start="1.79e+09", gauges=gauges))
    assert up.to_text() == (
        "at=1795427131482 every=200 up=1 running=3 waiting=1 kv=0.125 block_size=16 blocks=4096"
        " start=1.79e%2B09 lora_max=4 lora_running=a%20b,c%2Cd lora_waiting=up%3D0"
    )
    assert SharedSample(5, 1_000, Sample(is_up=False)).to_text() == "at=5 every=1000 up=0"


def test_names_that_do_not_fit_are_left_out() -> None:
    """Expect a text that a reader still takes."""
    names = frozenset(f"{n:03}{chr(0x1F600) * 60}" for n in range(limits.GAUGE_ADAPTERS_MAX))
    gauges = EngineGauges(adapters=Adapters(names, names, 4))
    text = SharedSample(1, 1, Sample(is_up=True, start="x" * 32, gauges=gauges)).to_text()
    assert len(text) <= limits.GAUGE_TEXT_CHARS_MAX
    read = SharedSample.from_text(text).sample.gauges.adapters
    assert 0 < len(read.running) == len(read.waiting) < len(names)
    assert read.running < names


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "at=1", "at=1 every=1", "at=x every=1 up=1", "at=-1 every=1 up=0",
        "at=1 every=60001 up=0",
        "at=1 every=1 up=1 running=1 waiting=nan kv=0", "at=1 every=1 up=1 running=1 waiting=0",
        "at=1 every=1 up=1 running=-1 waiting=0 kv=0",
        "at=1 every=1 up=1 running=1e300 waiting=0 kv=0",
        "at=1 every=1 up=1 running=1 waiting=0 kv=0 block_size=99999999",
        "at=1 every=1 up=0 " + "x=" + "y" * limits.GAUGE_TEXT_CHARS_MAX,
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused(text: str) -> None:
    """Expect one kind of error for all of it."""
    with pytest.raises(ValueError, match=r"."):
        SharedSample.from_text(text)


@given(st.text(max_size=200))
def test_no_text_is_too_odd(text: str) -> None:
    """Expect a sample or a ValueError, whoever wrote it."""
    with suppress(ValueError):
        SharedSample.from_text(text)
    with suppress(ValueError):
        SharedSample.from_text(f"at=1 every=1 up=1 running=1 waiting=1 kv=1 {text}")

"""Endpoints: what a metrics page says, and what is under way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.settings import Settings
from kvatlas.router.endpoint import FAILURES_UNHEALTHY, Endpoint
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.flight_log import boards_of
from kvatlas.router.flights import Stand
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.metrics_page import EngineGauges, read_gauges
from kvatlas.router.prefill_speed import PrefillSpeed

MODEL = ModelName("m")


def endpoint() -> Endpoint:
    """Make an endpoint that nothing is known of."""
    stand = Stand(PrefillSpeed(8_000.0))
    return Endpoint(EndpointName("a:1"), MODEL, "http://a:1", 0, Shard(MODEL, 0), None, None, stand)


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
vllm:cache_config_info{block_size="32",engine="1",hash_block_size="None"} 1.0
"""
    assert read_gauges(page) == {
        0: EngineGauges(running=3.0, kv_usage=0.25),
        1: EngineGauges(running=4.0, waiting=2.0, block_size=32),
    }


def test_the_page_of_a_real_engine_is_read(shared: Path) -> None:
    """Expect the idle vLLM of the captures with its 32 tokens per block."""
    page = (shared / "data" / "vllm-events" / "metrics_sample.txt").read_bytes()
    assert read_gauges(page) == {0: EngineGauges(block_size=32)}


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


# --- load ---------------------------------------------------------------------------------------


def test_our_own_requests_are_not_somebody_elses() -> None:
    """Expect what our routers have under way to be taken out of the engine's numbers."""
    ours = endpoint()
    ours.stand.requests = 2
    ours.observe(EngineGauges(running=5.0, waiting=0.0, kv_usage=0.5))
    assert (ours.others_running, ours.others_waiting, ours.kv_usage) == (3, 0, 0.5)


def test_our_own_queue_is_not_somebody_elses() -> None:
    """Expect our requests that do not run yet to be taken out of the queue."""
    ours = endpoint()
    ours.stand.requests = 3
    ours.observe(EngineGauges(running=1.0, waiting=2.0))
    ours.observe(EngineGauges(running=1.0, waiting=2.0))
    assert (ours.others_running, ours.others_waiting) == (0, 0)


def test_a_queue_counts_once_two_scrapes_have_seen_it() -> None:
    """Expect the smaller of the last two, so that one moment's queue sends nobody away."""
    one = endpoint()
    seen = []
    for waiting in (4.0, 3.0, 5.0, 0.0, 2.0):
        one.observe(EngineGauges(waiting=waiting))
        seen.append(one.others_waiting)
    assert seen == [0, 3, 3, 0, 0]


# --- health -------------------------------------------------------------------------------------


def test_health_is_lost_after_failures_in_a_row_and_comes_back() -> None:
    """Expect one answer to make up for all failures before it."""
    one = endpoint()
    healthy = []
    for _ in range(FAILURES_UNHEALTHY):
        one.failed()
        healthy.append(one.healthy)
    one.observe(EngineGauges())
    healthy.append(one.healthy)
    assert healthy == [*[True] * (FAILURES_UNHEALTHY - 1), False, True]


def test_a_failure_forgets_what_was_seen_of_others() -> None:
    """Expect a queue to be seen twice again before it counts."""
    one = endpoint()
    for _ in range(2):
        one.observe(EngineGauges(running=2.0, waiting=3.0))
    one.failed()
    assert (one.others_running, one.others_waiting) == (0, 0)
    one.observe(EngineGauges(waiting=3.0))
    assert one.others_waiting == 0


def test_an_endpoint_has_been_asked_whether_it_answered_or_not() -> None:
    """Expect a router to get ready beside engines that are away."""
    assert not endpoint().asked
    away, there = endpoint(), endpoint()
    away.failed()
    there.observe(EngineGauges())
    assert away.asked
    assert there.asked


# --- the configured fleet -----------------------------------------------------------------------


def settings(tmp_path: Path, key: str | None) -> Settings:
    """Configure two engines, one of them with two ranks, and perhaps a key."""
    path = tmp_path / "key"
    if key is not None:
        path.write_text(key, encoding="utf-8")
    return Settings.model_validate({
        "models": [
            {"name": "m", "tokenizer": "t", "index_shards": 4},
            {"name": "empty", "tokenizer": "t"},
        ],
        "endpoints": [
            {"url": "http://a:1", "model": "m", "api_key_file": str(path)},
            {"url": "http://b:2", "model": "m", "data_parallel_size": 2},
        ],
    })  # fmt: skip


def fleet(configured: Settings) -> Endpoints:
    """Make the endpoints of a configuration."""
    return Endpoints(configured, RouterMetrics(), boards_of(configured))


def test_every_rank_is_an_endpoint(tmp_path: Path) -> None:
    """Expect names, ranks and the engine's key, and a model without endpoints to be empty."""
    endpoints = fleet(settings(tmp_path, "secret\n"))
    assert [(e.name, e.rank, e.api_key) for e in endpoints.of(MODEL)] == [
        ("a:1", 0, "secret"),
        ("b:2", 0, None),
        ("b:2#1", 1, None),
    ]
    assert list(endpoints.all()) == endpoints.of(MODEL)
    assert endpoints.of(ModelName("empty")) == []


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    """Expect an endpoint's repr to be safe to log."""
    endpoints = fleet(settings(tmp_path, "secret"))
    assert "secret" not in repr(endpoints.of(MODEL))


def test_a_key_that_cannot_be_read_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """Expect the file to be named."""
    with pytest.raises(ConfigError, match="key: cannot be read"):
        fleet(settings(tmp_path, None))


@pytest.mark.parametrize(("configured", "known", "odd"), [(None, 32, False), (16, 16, True)])
def test_block_sizes_are_learned_or_held_against_the_configuration(
    configured: int | None, known: int, *, odd: bool
) -> None:
    """Expect a configured size to stay, and an engine with another one to be marked."""
    endpoints = fleet(
        Settings.model_validate({
            "models": [{"name": "m", "tokenizer": "t", "block_size": configured}],
            "endpoints": [{"url": "http://a:1", "model": "m"}],
        })
    )  # fmt: skip
    (one,) = endpoints.of(MODEL)
    page = b'vllm:cache_config_info{block_size="32",engine="0"} 1.0\n'
    for _ in range(2):
        endpoints._note_page(page, [one])
        assert (one.block_size, one.is_odd) == (known, odd)

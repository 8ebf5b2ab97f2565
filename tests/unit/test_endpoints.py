"""Endpoints: what a metrics page says, and what is under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.gauges import Adapters, EngineGauges, Look, Sample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import Shard
from kvatlas.common.settings import Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.endpoint import Endpoint, Engine
from kvatlas.router.endpoints import Endpoints
from kvatlas.router.flight_logs import boards_of
from kvatlas.router.flights import Board, RouterId
from kvatlas.router.metrics import RouterMetrics

MODEL = ModelName("m")


def endpoint() -> Endpoint:
    """Make an endpoint that nothing is known of."""
    stand = Board(RouterId("r"), 8_000.0).stand(EndpointName("a:1"))
    return Endpoint(EndpointName("a:1"), MODEL, "http://a:1", 0, Shard(MODEL, 0), None, None, stand)


# --- load ---------------------------------------------------------------------------------------


def test_our_own_requests_are_not_somebody_elses() -> None:
    """Expect what our routers have under way to be taken out of the engine's numbers."""
    ours = endpoint()
    ours.stand.requests = 2
    ours.note_requests(1.0)
    ours.observe(EngineGauges(running=5.0, waiting=0.0, kv_usage=0.5), 1.0)
    assert (ours.others_running, ours.others_waiting, ours.kv_usage) == (3, 0, 0.5)


def test_our_own_queue_is_not_somebody_elses() -> None:
    """Expect our requests that do not run yet to be taken out of the queue."""
    ours = endpoint()
    ours.stand.requests = 3
    ours.note_requests(1.0)
    ours.observe(EngineGauges(running=1.0, waiting=2.0), 1.0)
    ours.observe(EngineGauges(running=1.0, waiting=2.0), 1.0)
    assert (ours.others_running, ours.others_waiting) == (0, 0)


def test_a_queue_counts_once_two_scrapes_have_seen_it() -> None:
    """Expect the smaller of the last two, so that one moment's queue sends nobody away."""
    one = endpoint()
    seen = []
    for waiting in (4.0, 3.0, 5.0, 0.0, 2.0):
        one.observe(EngineGauges(waiting=waiting), 1.0)
        seen.append(one.others_waiting)
    assert seen == [0, 3, 3, 0, 0]


def test_what_was_ours_at_the_moment_of_a_look_counts() -> None:
    """Expect requests that began or ended since then to change nothing."""
    one = endpoint()
    for now_s, requests in ((1.0, 4), (2.0, 9), (3.0, 0)):
        one.stand.requests = requests
        one.note_requests(now_s)
    seen = []
    for looked_s in (1.5, 1.999, 2.5, 3.5):
        one.observe(EngineGauges(running=9.0), looked_s)
        seen.append(one.others_running)
    assert seen == [5, 0, 0, 9]


def test_gauges_have_an_age() -> None:
    """Expect infinity before the first, and what was seen to be told as it was."""
    one = endpoint()
    assert one.gauges_age_s(5.0) == float("inf")
    adapters = Adapters(frozenset("a"), frozenset("b"), 4)
    one.observe(EngineGauges(waiting=2.0, adapters=adapters), 3.0)
    assert (one.gauges_age_s(5.0), one.waiting, one.adapters) == (2.0, 2, adapters)


# --- health -------------------------------------------------------------------------------------


def test_health_is_lost_after_failures_in_a_row_and_comes_back() -> None:
    """Expect one answer to make up for all failures before it."""
    endpoints, engine, one = lone()
    healthy = []
    for _ in range(limits.UNANSWERED_MAX):
        endpoints.note_look(engine, SILENT)
        healthy.append(one.healthy)
    endpoints.note_look(engine, Look("answered", 9.0, "5", {0: EngineGauges()}))
    healthy.append(one.healthy)
    assert healthy == [*[True] * (limits.UNANSWERED_MAX - 1), False, True]


def test_who_answers_without_its_page_is_well() -> None:
    """Expect its gauges to stay as they were, and grow old."""
    endpoints, engine, one = lone()
    endpoints.note_shared(one.name, BUSY, 2.0)
    endpoints.health.failed(one, "connect")
    endpoints.note_alive(engine)
    assert (one.failures, one.others_running, one.gauges_age_s(3.0)) == (0, 7, 1.0)


def test_a_failure_forgets_what_was_seen_of_others() -> None:
    """Expect a queue to be seen twice again before it counts."""
    one = endpoint()
    for _ in range(2):
        one.observe(EngineGauges(running=2.0, waiting=3.0), 1.0)
    one.failed()
    assert (one.others_running, one.others_waiting) == (0, 0)
    one.observe(EngineGauges(waiting=3.0), 1.0)
    assert one.others_waiting == 0


def test_an_endpoint_has_been_asked_whether_it_answered_or_not() -> None:
    """Expect a router to get ready beside engines that are away."""
    assert not endpoint().asked
    away, there = endpoint(), endpoint()
    away.failed()
    there.observe(EngineGauges(), 1.0)
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
    return Endpoints(
        configured,
        RouterMetrics(),
        boards_of(configured),
        EngineIdentities(configured, TlsGauges()),
    )


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
    (engine,) = endpoints.engines()
    look = Look("answered", 1.0, None, {0: EngineGauges(block_size=32)})
    endpoints.note_look(engine, look)
    assert (one.block_size, one.is_odd) == (known, odd)
    endpoints.note_shared(one.name, look.sample(0), 2.0)
    assert (one.block_size, one.is_odd) == (known, odd)


# --- what indexers tell -------------------------------------------------------------------------

SILENT = Look("silent", 3.0)
BUSY = Sample(is_up=True, start="5", gauges=EngineGauges(running=7.0))


def lone() -> tuple[Endpoints, Engine, Endpoint]:
    """Configure one engine of two ranks; give rank 0."""
    endpoints = fleet(
        Settings.model_validate({
            "models": [{"name": "m", "tokenizer": "t"}],
            "endpoints": [{"url": "http://a:1", "model": "m", "data_parallel_size": 2}],
        })
    )  # fmt: skip
    (engine,) = endpoints.engines()
    return endpoints, engine, engine.endpoints[0]


def test_what_is_shared_is_as_good_as_a_look_of_ours() -> None:
    """Expect gauges, their age and a first life, for the rank that it is of."""
    endpoints, engine, one = lone()
    endpoints.note_shared(one.name, BUSY, 2.0)
    assert (one.others_running, one.gauges_age_s(2.5), one.asked) == (7, 0.5, True)
    assert (engine.lives, engine.is_away) == (1, False)
    assert not engine.endpoints[1].asked


def test_who_has_failed_us_is_believed_when_it_answers_us() -> None:
    """Expect what others saw to mend nothing."""
    endpoints, engine, one = lone()
    endpoints.note_look(engine, SILENT)
    endpoints.note_shared(one.name, BUSY, 4.0)
    assert (one.failures, one.others_running, engine.is_away) == (1, 0, True)
    endpoints.note_look(engine, Look("no_page", 5.0))
    endpoints.note_shared(one.name, BUSY, 6.0)
    assert (one.failures, one.others_running, engine.is_away) == (0, 7, False)


def test_what_is_older_than_our_own_look_is_passed_over() -> None:
    """Expect an engine that has begun anew not to go back to its former life."""
    endpoints, engine, one = lone()
    endpoints.note_look(engine, Look("answered", 3.0, "6", {0: EngineGauges(running=1.0)}))
    endpoints.note_shared(one.name, BUSY, 2.0)
    assert (engine.lives, one.gauges.running) == (1, 1.0)


def test_endpoints_that_are_not_ours_are_passed_over() -> None:
    """Expect an indexer's configuration to be newer, or another."""
    endpoints, *_ = lone()
    endpoints.note_shared(EndpointName("b:1"), BUSY, 2.0)


# --- who comes and goes -------------------------------------------------------------------------


def test_who_is_gone_takes_nothing_and_changes_nothing(tmp_path: Path) -> None:
    """Expect what its last requests tell to be of no account, and a new one in its place."""
    configured = settings(tmp_path, "secret")
    endpoints = fleet(configured)
    first, *_ = before = endpoints.of(MODEL).copy()
    endpoints.follow(configured.endpoints[1:])
    assert endpoints.of(MODEL) == before[1:]
    assert (first.is_gone, first.healthy) == (True, False)
    for _ in range(limits.UNANSWERED_MAX):
        endpoints.health.failed(first, "connect")
    endpoints.health.answered(first)
    assert (first.healthy, first.standing.unanswered) == (False, 0)
    endpoints.follow(configured.endpoints)
    again, *rest = endpoints.of(MODEL)
    assert (again.name, again is first, rest) == (first.name, False, before[1:])


def test_one_whose_key_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """Expect the others to be there, and it as well when its key is."""
    configured = settings(tmp_path, "secret")
    endpoints = fleet(configured.model_copy(update={"endpoints": []}))
    (tmp_path / "key").unlink()
    endpoints.follow(configured.endpoints)
    assert [each.name for each in endpoints.all()] == ["b:2", "b:2#1"]
    (tmp_path / "key").write_text("other")
    endpoints.follow(configured.endpoints)
    assert [each.name for each in endpoints.all()] == ["a:1", "b:2", "b:2#1"]

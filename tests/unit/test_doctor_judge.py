"""What the doctor thinks of what it found: the level, and an advice with every fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvatlas.cli.doctor_engine import judge_engine
from kvatlas.cli.doctor_events import behind, judge_events
from kvatlas.cli.doctor_facts import (
    CertificateFound,
    EngineFound,
    EventsFound,
    Finding,
    Found,
    PageFound,
    RedisFound,
    RenderFound,
    ReplayFound,
    Samples,
)
from kvatlas.cli.doctor_judge import (
    judge,
    judge_certificate,
    judge_indexer,
    judge_redis,
    judge_router,
)
from kvatlas.cli.index_reader import EndpointState
from kvatlas.common.discovery.answers import EventSource
from kvatlas.common.ids import EndpointName
from kvatlas.common.keyspace import SCHEMA_VERSION
from kvatlas.router.engine_answers import ServedModels
from kvatlas.router.probe import TokenizerCheck

NAME = EndpointName("e:1")
CACHE = {"block_size": "16", "prefix_caching_hash_algo": "sha256"}
ENGINE = EngineFound(
    "http://e:1",
    "m",
    (NAME,),
    16,
    version=(0, 32, 0),
    models=ServedModels(serves=True, adapters=frozenset("x")),
    tokenizer=TokenizerCheck(answered=11),
    caches={0: CACHE},
    sources={0: EventSource("tcp://*:5557", "tcp://*:5558")},
    tells_cached=True,
)
REDIS = RedisFound(
    schema=SCHEMA_VERSION,
    models={"m": 1},
    config={"maxmemory-policy": "noeviction", "hash-max-listpack-entries": "512"},
)
PAGE = PageFound("http://i:1", is_named=True)


def state(seq: int = 7, **changes: Any) -> EndpointState:
    """Write what the index says of the endpoint."""
    fields = {
        "name": NAME, "shard": 0, "epoch": 3, "seq": seq, "blocks": 9, "block_size": 16,
        "reason": "start", "since_s": 1.0, "event_s": 2.0, "pools": {},
        "groups": "0=full_attention", "unmatched": "", "phase": "live", "followed_s": 3.0,
        "owner": "indexer-1", "lag_s": 0.0, "counts": {},
    }  # fmt: skip
    return EndpointState(**{**fields, **changes})


EVENTS = EventsFound(
    NAME,
    "m",
    0,
    "tcp://e:5557",
    "tcp://e:5558",
    accepts=True,
    replay=ReplayFound(7, 7, has_start=True, is_complete=True),
    before=state(),
    after=state(),
)
FOUND = Found(
    models={"m": 1}, engines=[ENGINE], events=[EVENTS], redis=REDIS, indexers=[PAGE], routers=[PAGE]
)


def samples(*values: tuple[str, dict[str, str], float]) -> Samples:
    """Write a page of metrics."""
    return Samples({(name, frozenset(labels.items())): value for name, labels, value in values})


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    """Give level and check of what is not fine; each says what to do."""
    bad = [finding for finding in findings if finding.level != "ok"]
    assert all(finding.advice.endswith(".") and finding.found.endswith(".") for finding in bad)
    return [(finding.level, finding.check) for finding in bad]


def test_all_is_well() -> None:
    """Nothing but good news, and every part is named."""
    findings = judge(FOUND)
    assert told(findings) == []
    assert {finding.where for finding in findings} == {"redis", "http://i:1", NAME}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"silence": "timeout"}, [("fault", "reachable")]),
        ({"version": None}, []),
        ({"models": None}, [("warn", "model")]),
        ({"models": ServedModels(serves=False)}, [("fault", "model")]),
        ({"tokenizer": None}, [("warn", "tokenizer")]),
        ({"tokenizer": TokenizerCheck(why="key")}, [("warn", "tokenizer")]),
        ({"tokenizer": TokenizerCheck(9, (1,), frozenset({"text"}))}, [("fault", "tokenizer")]),
        ({"tokenizer": TokenizerCheck(9, (8,), frozenset({"chat"}))}, [("fault", "tokenizer")]),
        ({"tells_cached": False}, [("warn", "cached_tokens")]),
        ({"tells_cached": None}, []),
        ({"caches": {}}, [("warn", "cache")]),
        ({"caches": {0: {**CACHE, "enable_prefix_caching": "False"}}}, [("fault", "cache")]),
        ({"caches": {0: {**CACHE, "block_size": "32"}}}, [("fault", "block_size")]),
        ({"caches": {0: {**CACHE, "hash_block_size": "64"}}}, [("fault", "block_size")]),
        ({"caches": {0: {"block_size": "None"}}}, []),
        ({"caches": {0: {**CACHE, "block_size": "32"}}, "block_size": None}, []),
    ],
)
def test_engines(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """Each answer has its judgement."""
    assert told(list(judge_engine(replace(ENGINE, **changes)))) == expected


def test_the_advice_for_chats_is_the_template_and_for_texts_the_tokenizer() -> None:
    """They are mended in different places."""
    advice = {}
    for kind in ("text", "chat"):
        check = TokenizerCheck(9, (1,), frozenset({kind}))
        findings = judge_engine(replace(ENGINE, tokenizer=check))
        (advice[kind],) = (one.advice for one in findings if one.check == "tokenizer")
    assert "exported" in advice["text"]
    assert "chat_template" in advice["chat"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"events": None}, [("warn", "events")]),
        ({"after": state(unmatched="kind")}, [("warn", "groups")]),
        ({"after": state(phase="waiting")}, [("warn", "doubt")]),
        ({"after": state(phase="stale")}, [("warn", "stale")]),
        ({"accepts": False}, [("fault", "events")]),
        ({"events": "tcp://e:6000"}, [("fault", "events")]),
        ({"replay_address": "tcp://e:6000"}, [("fault", "events")]),
        ({"replay_address": None, "replay": None}, [("warn", "replay")]),
        ({"replay": ReplayFound(7, 7, True, False)}, [("fault", "replay")]),  # noqa: FBT003 - as in the class
        ({"after": None}, [("fault", "index")]),
        ({"after": state(5)}, [("fault", "index")]),
        ({"after": state(9)}, []),
        ({"replay": ReplayFound(7, None, False, True)}, [("fault", "index")]),  # noqa: FBT003 - alike
        ({"replay": ReplayFound(7, None, False, True), "after": state(0, epoch=4)}, []),  # noqa: FBT003 - alike
        ({"replay": ReplayFound(0, None, False, True), "before": None, "after": state(-1)}, []),  # noqa: FBT003 - alike
        ({"after": state(block_size=32)}, [("fault", "block_size")]),
    ],
)
def test_events(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """From the socket to the place in the index."""
    assert told(list(judge_events(replace(EVENTS, **changes), ENGINE, FOUND))) == expected


def test_an_engine_that_is_away_is_not_blamed_for_its_events() -> None:
    """One fault is enough."""
    away, events = replace(ENGINE, silence="connection"), replace(EVENTS, accepts=False)
    assert told(list(judge_events(events, away, FOUND))) == []


def test_an_engine_without_events_says_so_itself() -> None:
    """The advice is the same, the reason is told."""
    quiet = replace(ENGINE, sources={})
    findings = list(judge_events(replace(EVENTS, accepts=False), quiet, FOUND))
    assert told(findings) == [("fault", "events")]
    assert "publishes none" in findings[0].found


def test_without_redis_the_index_is_not_judged() -> None:
    """Its silence has been told."""
    found = replace(FOUND, redis=RedisFound(silence="connection"))
    assert told(list(judge_events(replace(EVENTS, after=None), ENGINE, found))) == []
    assert told(judge(found)) == [("fault", "reachable")]


@pytest.mark.parametrize(("newest", "seq", "lag"), [(7, 7, 0), (9, 7, 2), (7, 9, 0), (None, -1, 0)])
def test_the_lag_is_counted_in_batches(newest: int | None, seq: int, lag: int) -> None:
    """An index that has gone on meanwhile is not behind."""
    replay = ReplayFound(0, newest, has_start=True, is_complete=True)
    assert behind(replace(EVENTS, replay=replay, after=state(seq))) == lag
    assert behind(replace(EVENTS, replay=None)) is None


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        ("batches_rejected_total", {"reason": "schema"}),
        ("orphan_blocks_total", {}),
        ("blocks_over_limit_total", {}),
        ("sequence_events_total", {"what": "gap"}),
        ("epochs_total", {"reason": "lost"}),
    ],
)
def test_what_the_indexer_counted_is_told(metric: str, labels: dict[str, str]) -> None:
    """Of this endpoint, not of others."""
    name = f"kvatlas_indexer_{metric}"
    for endpoint, expected in ((str(NAME), [("warn", "sequence")]), ("e:2", [])):
        page = replace(PAGE, samples=samples((name, {"endpoint": endpoint, **labels}, 3.0)))
        found = replace(FOUND, indexers=[page])
        assert told(list(judge_events(EVENTS, ENGINE, found))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"silence": "connection"}, [("fault", "reachable")]),
        ({"schema": None}, [("fault", "schema")]),
        ({"schema": "0"}, [("fault", "schema")]),
        ({"models": {"m": 4}}, [("fault", "shards")]),
        ({"models": {}}, []),
        ({"config": {}}, [("warn", "options")]),
        ({"config": {"maxmemory-policy": "allkeys-lru"}}, [("warn", "eviction")]),
        ({"evicted": 3}, [("fault", "eviction")]),
        ({"config": {"hash-max-ziplist-value": "64"}}, [("warn", "compactness")]),
    ],
)
def test_redis(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """Reachable, of our schema, keeping what it is given."""
    assert told(list(judge_redis(replace(REDIS, **changes), {"m": 1}))) == expected


def test_services() -> None:
    """A router that only the configuration names may be elsewhere; one that is named may not."""
    silent, late = replace(PAGE, silence="timeout"), replace(PAGE, not_ready="draining")
    assert told(list(judge_indexer(silent))) == [("fault", "indexer")]
    assert told(list(judge_indexer(late))) == [("fault", "indexer")]
    assert told(list(judge_router(silent))) == [("fault", "router")]
    assert told(list(judge_router(replace(silent, is_named=False)))) == [("warn", "router")]
    assert told(list(judge_router(late))) == [("fault", "router")]


@pytest.mark.parametrize("fault", ["render_status", "render_refused", "render_connection"])
def test_render_services(fault: str) -> None:
    """Each fault has its advice; one that renders is fine."""
    well = RenderFound("m", "http://r:1")
    found = replace(FOUND, renders=[well, replace(well, fault=fault)])
    assert told(judge(found)) == [("fault", "render")]


@pytest.mark.parametrize(("requests", "fallbacks", "warns"), [(100, 4, 0), (100, 40, 1), (9, 9, 0)])
def test_a_router_that_goes_by_load_too_often_is_told(
    requests: int, fallbacks: int, warns: int
) -> None:
    """With the reason that is met most."""
    page = samples(
        ("kvatlas_router_requests_total", {"model": "m", "status": "200"}, requests),
        ("kvatlas_router_fallbacks_total", {"stage": "prompt", "reason": "too_long"}, fallbacks),
        ("kvatlas_router_fallbacks_total", {"stage": "lookup", "reason": "timeout"}, 1.0),
    )
    findings = list(judge_router(replace(PAGE, samples=page)))
    assert told(findings) == [("warn", "fallbacks")] * warns
    assert ("too_long" in findings[-1].found) == bool(warns)


@pytest.mark.parametrize(
    ("exact", "over", "expected"),
    [
        (0, 0, []),
        (10, 10, []),
        (99, 1, []),
        (90, 10, [("warn", "predictions")]),
        (60, 40, [("fault", "predictions")]),
    ],
)
def test_predictions_over_all_routers(
    exact: int, over: int, expected: list[tuple[str, str]]
) -> None:
    """Few of them say nothing; what runs over is the engine having less than is believed."""
    name = "kvatlas_router_predictions_total"
    pages = [
        replace(PAGE, samples=samples((name, {"endpoint": NAME, "outcome": outcome}, count)))
        for outcome, count in (("exact", exact), ("over", over))
    ]
    assert told(judge(replace(FOUND, routers=pages))) == expected


@pytest.mark.parametrize("exact", [0, 100])
def test_prompts_of_another_length_are_a_fault(exact: int) -> None:
    """The engine counted other tokens than the router: whatever matched, it renders otherwise."""
    name = "kvatlas_router_predictions_total"
    page = samples(
        (name, {"endpoint": NAME, "outcome": "exact"}, exact),
        (name, {"endpoint": NAME, "outcome": "other_prompt"}, 3.0),
    )
    found = replace(FOUND, routers=[replace(PAGE, samples=page)])
    assert told(judge(found)) == [("fault", "tokens")]


def test_samples_are_summed_by_labels() -> None:
    """A name without samples is none, not zero."""
    page = samples(("a", {"x": "1", "y": "1"}, 1.0), ("a", {"x": "2", "y": "1"}, 2.0))
    assert (page.sum("a"), page.sum("a", x="2"), page.sum("a", x="3")) == (3.0, 2.0, None)
    assert page.by("a", "y") == {"1": 3.0}
    assert page.labels("a") == [{"x": "1", "y": "1"}, {"x": "2", "y": "1"}]


@pytest.mark.parametrize(
    ("days", "level"), [(14.0, "ok"), (13.9, "warn"), (0.1, "warn"), (0.0, "fault"), (-3, "fault")]
)
def test_certificates_are_warned_of_two_weeks_before(days: float, level: str) -> None:
    """With what to do about it."""
    found = judge_certificate(CertificateFound("router.tls", days * 86_400))
    assert (found.level, found.where) == (level, "router.tls")
    assert bool(found.advice) is (level != "ok")

"""U13, U14, U16 and U17: herds, old gauges, other services at an address, and no hedging."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from typing import Any

from kvatlas.common.gauges import EngineGauges
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ANSWER, Options, Scale, chaos_place
from tests.fakes.engines import until
from tests.fakes.upstream import Exchange, plain
from tests.fakes.upstream_fleet import GOOD, upstream_fleet

HERD = 96
WORK_S = 0.1
SHARE_MAX = 0.5
EVERY_S = 0.05
OTHER = b'{"object": "list", "data": [{"id": "another", "object": "model"}]}'
OURS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'


async def test_u13_a_herd_does_not_stay_with_the_warm_engine(scale: Scale, canary: Canary) -> None:
    """One prompt many times at once: it starts where it is cached, and spreads by load."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(WORK_S)
        await plain(ANSWER)(exchange)

    options = Options(answer=slow, engines=4)
    async with chaos_place(scale, canary, options) as place:
        warm = place.engines[0]
        alone = await place.ask(warm)
        assert (alone.endpoint, alone.fallback) == (warm.name, None)
        seen = await asyncio.gather(*(place.ask(warm) for _ in range(HERD)))
        assert {each.status for each in seen} == {200}
        by_endpoint = Counter(each.endpoint for each in seen)
        assert len(by_endpoint) == 4
        most = max(by_endpoint.values()) / HERD
        assert most <= SHARE_MAX
    Report(
        "U13",
        f"{HERD} times the same prompt at once, cached at one of 4",
        f"by endpoint {sorted(by_endpoint.values(), reverse=True)}",
    ).tell()


async def test_u14_old_gauges_do_not_steer(canary: Canary, log: io.StringIO) -> None:
    """A page hangs that told of a full engine: what is ours counts, the rest is guessed."""
    options: dict[str, Any] = {"metrics_interval_s": EVERY_S, "policy": "least-load"}

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(WORK_S)
        await GOOD(exchange)

    async with upstream_fleet([slow] * 3, canary, log, **options) as place:
        old = place.endpoint(0)
        place.engines[0].hangs = True
        await asyncio.sleep(4 * EVERY_S)
        old.observe(EngineGauges(running=50.0, waiting=20.0, kv_usage=0.9), old.looked_s)
        await until(lambda: old.others_running == 0, 10.0)
        assert (old.waiting, old.kv_usage, old.healthy) == (0, 0.0, True)
        assert place.count("gauges_age_seconds", endpoint=old.name) > 1.0
        assert place.count("looks_total", outcome="silent") > 0
        seen = await asyncio.gather(*(place.ask() for _ in range(30)))
        assert {each.status for each in seen} == {200}
        assert {each.endpoint for each in seen} == {
            each.name for each in place.running.endpoints.all()
        }
    Report(
        "U14", "/metrics hangs, having told of a full engine", "guessed as the others are"
    ).tell()


async def test_u16_an_address_that_serves_something_else_gets_nothing(
    canary: Canary, log: io.StringIO
) -> None:
    """A new life is asked for its models before its first request."""
    async with upstream_fleet([GOOD, GOOD], canary, log, metrics_interval_s=EVERY_S) as place:
        moved = place.engines[0]
        moved.models = OURS
        assert {(await place.ask()).status for _ in range(4)} == {200}
        before = len(moved.requests)
        assert before
        # The pod went, and its address is another service's.
        moved.models = OTHER
        moved.metrics += b"process_start_time_seconds 1795420000.5\n"
        await until(lambda: place.endpoint(0).facts.serves is False)
        assert {(await place.ask()).status for _ in range(6)} == {200}
        assert len(moved.requests) == before
        assert place.count("endpoint_serves_model", endpoint=place.endpoint(0).name) == 0
        assert place.told("endpoint.serves_other_model")
    Report("U16", "an address is another service's", "asked for its models, gets nothing").tell()


async def test_u16_a_name_that_cannot_be_found_is_one_that_does_not_answer(
    canary: Canary, log: io.StringIO
) -> None:
    """Others serve meanwhile; nothing is forgotten of them."""
    name = "engine.invalid:8000"
    async with upstream_fleet(
        [GOOD], canary, log, before=[name], metrics_interval_s=EVERY_S
    ) as place:
        seen = [await place.ask() for _ in range(6)]
        assert {each.status for each in seen} == {200}
        await until(lambda: place.endpoint(0).standing.is_away)
        assert place.told("endpoint.ejected", endpoint=name, reason="unreachable")
        assert place.running.readiness() is None
    Report("U16", "an engine's name is not found", "away, the others serve").tell()


async def test_u17_a_slow_engine_is_waited_for(canary: Canary, log: io.StringIO) -> None:
    """No second engine is asked for what one is computing: it would cost its work twice."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.0)
        await GOOD(exchange)

    async with upstream_fleet([slow, slow, slow], canary, log) as place:
        seen = await place.ask()
        assert (seen.status, seen.seconds >= 1.0) == (200, True)
        assert sum(len(engine.requests) for engine in place.engines) == 1
        assert place.retries() == 0
    Report("U17", "an engine takes long", "it alone computes: no hedging (ADR 8)").tell()

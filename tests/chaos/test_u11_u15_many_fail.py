"""U11, U12 and U15, endpoints flap, all die, or a third of them fails under load."""

from __future__ import annotations

import asyncio
import io
import statistics
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import Scale
from tests.fakes.engines import until
from tests.fakes.upstream import Behaviour, Exchange, plain, upstream
from tests.fakes.upstream_fleet import (
    ANSWER,
    GOOD,
    Seen,
    UpstreamFleet,
    refused,
    reset,
    upstream_fleet,
)

PAUSE_S = 0.5
CLOSING = plain(ANSWER, "200 OK", b"Connection: close")
AWAY_MS_MAX = 1.0
EVERY_S = 0.05


def flapping(share: int = 2) -> Behaviour:
    """Answer every so many-th request with a 500."""
    count = 0

    async def behave(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        fails = plain(b"{}", "500 Oops")
        await (fails if count % share == 0 else GOOD)(exchange)

    return behave


async def test_u11_who_fails_half_of_its_requests_is_taken_out_and_returns(
    canary: Canary, log: io.StringIO
) -> None:
    """Nothing is sent there for a while; then it returns without a client's request as a trial."""
    options: dict[str, Any] = {"ejection": {"pause_s": PAUSE_S}, "metrics_interval_s": EVERY_S}
    async with upstream_fleet([flapping(), GOOD, GOOD, GOOD], canary, log, **options) as place:
        bad = place.endpoint(0)
        while not bad.standing.is_ejected:
            await place.ask()
        asked = len(place.engines[0].requests)
        assert asked == limits.EJECTION_REQUESTS_MIN
        seen = [await place.ask() for _ in range(12)]
        assert {each.status for each in seen} == {200}
        assert len(place.engines[0].requests) == asked
        assert place.count("ejections_total", endpoint=bad.name, reason="share") == 1
        assert place.count("endpoint_ejected", endpoint=bad.name) == 1
        assert place.count("endpoint_healthy", endpoint=bad.name) == 1
        assert place.told("endpoint.ejected", endpoint=bad.name, reason="share")
        await until(lambda: not bad.standing.is_ejected, PAUSE_S + 1.0)
        assert len(place.engines[0].requests) == asked
        assert place.told("endpoint.returned", endpoint=bad.name)
        assert bad.healthy
    Report("U11", "one of 4 answers every second request with 500", "out after 20, back").tell()


async def test_u11_never_more_than_half_are_taken_out(canary: Canary, log: io.StringIO) -> None:
    """All fail: two of four are out, and clients hear what engines say."""
    always = plain(b"{}", "500 Oops")
    async with upstream_fleet([always] * 4, canary, log) as place:
        seen = [await place.ask() for _ in range(60)]
        assert {each.status for each in seen} == {500}
        ejected = [each.standing.is_ejected for each in place.running.endpoints.all()]
        assert sum(ejected) == 2
        assert place.count("panic", model="m") == 0
    Report("U11", "all of 4 answer 500", "2 are out, the others answer").tell()


async def test_u11_in_a_panic_ejections_do_not_count(canary: Canary, log: io.StringIO) -> None:
    """Two of four are out for failing and a third dies: those that answer are asked again."""
    with refused() as dead:
        always = plain(b"{}", "500 Oops")
        async with upstream_fleet(
            [always, always, GOOD], canary, log, before=[dead], metrics_interval_s=EVERY_S
        ) as place:
            place.endpoint(0).standing.unanswered = -(10**6)
            while sum(each.standing.is_ejected for each in place.running.endpoints.all()) < 2:
                await place.ask()
            place.endpoint(0).standing.unanswered = 0
            await until(lambda: place.endpoint(0).standing.is_away)
            assert place.count("panic", model="m") == 1
            seen = [await place.ask() for _ in range(9)]
            assert {each.status for each in seen} == {200, 500}
            assert all(each.endpoint != dead for each in seen)
    Report("U11", "half is out for failing, then one dies", "panic: the others are asked").tell()


async def test_u12_when_all_are_dead_clients_hear_so_at_once(
    canary: Canary, log: io.StringIO, scale: Scale
) -> None:
    """503 with Retry-After without a try, and all is well again without a restart, each time."""
    recovered, spent_ms = [], []
    async with upstream(GOOD) as first:
        ports = [first.port]
    with refused() as also_dead:
        async with upstream_fleet(
            [], canary, log, before=[f"127.0.0.1:{ports[0]}", also_dead], metrics_interval_s=EVERY_S
        ) as place:
            away = place.running.endpoints.health
            for _ in range(max(3, scale.rounds)):
                await until(lambda: away.is_all_away(place.endpoint(0).model))
                for _ in range(20):
                    seen = await place.ask()
                    assert (seen.status, seen.code) == (503, "no_endpoints")
                    assert seen.headers["Retry-After"]
                lines = place.told("request.finished", status=503)[-20:]
                spent_ms += [line["total_ms"] for line in lines]
                async with upstream(CLOSING, ports[0]) as engine:
                    began = monotonic()
                    while (await place.ask()).status != 200:  # noqa: ASYNC110 - a client
                        await asyncio.sleep(0.02)
                    recovered.append(monotonic() - began)
                    assert engine.requests
            assert place.told("endpoint.returned")
    assert statistics.median(spent_ms) < AWAY_MS_MAX
    Report(
        "U12",
        "no endpoint of two listens",
        f"503 no_endpoints after {statistics.median(spent_ms):.2f} ms (median)",
        recovered,
    ).tell()


@pytest.mark.timeout(60)
async def test_u15_retries_are_no_storm(canary: Canary, log: io.StringIO, scale: Scale) -> None:
    """Three of ten fail and are kept in: retries keep to their share, the others' speed stays."""
    failing, clients = False, 80 if scale.is_full else 40
    most: list[float] = []

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await GOOD(exchange)

    async def fails(exchange: Exchange) -> None:
        await (reset if failing else slow)(exchange)

    engines = [fails] * 3 + [slow] * 7
    options: dict[str, Any] = {"ejection": {"failures": 1_000, "share": 1.0}}
    async with upstream_fleet(engines, canary, log, **options) as place:
        http = place.running.core.http

        async def load(rounds: int) -> list[tuple[int, float]]:
            found = []
            for _ in range(rounds):
                seen = await place.ask()
                under_way = http._retries.under_way
                most.append(under_way - max(limits.RETRIES_AT_LEAST, 0.2 * clients))
                found.append((seen.status, seen.seconds))
            return found

        async def loaded(rounds: int) -> list[tuple[int, float]]:
            found = await asyncio.gather(*(load(rounds) for _ in range(clients)))
            return [each for one in found for each in one]

        before = [seconds for _, seconds in await loaded(5)]
        failing = True
        during = await loaded(10)
        statuses = {status for status, _ in during}
        assert statuses == {200, 502}
        assert max(most) <= 0
        assert place.retries("budget") > 0
        assert place.retries("sent") > 0
        lost = sum(status == 502 for status, _ in during)
        good_s = [seconds for status, seconds in during if status == 200]
        assert statistics.median(good_s) < statistics.median(before) + 0.1
    Report(
        "U15",
        "3 of 10 reset every request under full load, ejection off",
        f"retries stay within a fifth; {lost} of {len(during)} fail at once, the others take "
        f"{1e3 * statistics.median(good_s):.0f} ms ({1e3 * statistics.median(before):.0f} before)",
    ).tell()


async def test_u15_with_ejection_a_storm_is_short(canary: Canary, log: io.StringIO) -> None:
    """The same with the defaults: after some failures each, nobody asks the three any more."""
    engines = [reset] * 3 + [GOOD] * 7
    async with upstream_fleet(engines, canary, log) as place:
        seen = [each for _ in range(10) for each in await _many(place, 10)]
        lost = sum(each.status != 200 for each in seen)
        out = [each.standing.is_ejected for each in place.running.endpoints.all()]
        assert out == [True] * 3 + [False] * 7
        # A retry may meet the next one that fails, until all three are known.
        assert lost <= 3 * limits.EJECTION_FAILURES
        assert {each.body for each in await _many(place, 20)} == {ANSWER}
    Report("U15", "3 of 10 reset every request", f"ejected; {lost} of 100 requests failed").tell()


async def _many(place: UpstreamFleet, count: int) -> list[Seen]:
    return await asyncio.gather(*(place.ask() for _ in range(count)))

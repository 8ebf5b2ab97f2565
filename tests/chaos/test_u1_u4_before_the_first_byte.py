"""U1 to U4 and I3, an engine fails before its first byte: one retry elsewhere, or a status."""

from __future__ import annotations

import asyncio
import io

import pytest

from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.fault_proxy import fault_proxy
from tests.fakes.upstream import Exchange, upstream
from tests.fakes.upstream_fleet import ANSWER, GOOD, black_hole, refused, reset, upstream_fleet

CONNECT_S = 0.2
FIRST_BYTE_S = 0.3


async def test_u1_who_refuses_is_passed_over_and_taken_out(
    canary: Canary, log: io.StringIO
) -> None:
    """Clients see nothing of it; alone it is a 502, or a 503 once nobody is known to answer."""
    with refused() as dead:
        async with upstream_fleet([GOOD], canary, log, before=[dead]) as place:
            seen = [await place.ask() for _ in range(8)]
            assert {each.status for each in seen} == {200}
            # The first look was one failure, two requests the others.
            assert place.retries() == place.errors(0, "connect") == 2
            assert place.count("ejections_total", endpoint=dead, reason="unreachable") == 1
            assert place.count("endpoint_healthy", endpoint=dead) == 0
            assert place.told("endpoint.ejected", endpoint=dead, reason="unreachable")
        async with upstream_fleet([], canary, log, before=[dead]) as place:
            place.endpoint(0).standing.unanswered = 0
            alone = await place.ask()
            assert (alone.status, alone.code) == (502, "upstream_connect")
            known = await place.ask()
            assert (known.status, known.code) == (503, "no_endpoints")
    Report("U1", "a closed port", "retried elsewhere, away after 3; alone 502, then 503").tell()


async def test_u2_who_takes_no_connection_costs_its_time_once(
    canary: Canary, log: io.StringIO
) -> None:
    """Another endpoint answers after `connect_s`; alone it is a 504."""
    with black_hole() as hole:
        async with upstream_fleet([GOOD], canary, log, before=[hole], connect_s=CONNECT_S) as place:
            seen = [await place.ask() for _ in range(6)]
            assert {each.status for each in seen} == {200}
            assert sum(each.seconds >= CONNECT_S for each in seen) == 2
            assert max(each.seconds for each in seen) < CONNECT_S + 0.5
            assert place.errors(0, "connect_timeout") == place.retries() == 2
            assert place.told("endpoint.ejected", endpoint=hole)
        async with upstream_fleet([], canary, log, before=[hole], connect_s=CONNECT_S) as place:
            place.endpoint(0).standing.unanswered = 0
            alone = await place.ask()
            assert (alone.status, alone.code) == (504, "upstream_unreached")
    Report("U2", "listen(0) with a full queue", "another answers after connect_s; 504").tell()


async def test_u3_silence_is_a_504_and_not_asked_twice(canary: Canary, log: io.StringIO) -> None:
    """The budget for the first byte ends it, though another endpoint is there."""
    async with upstream(GOOD) as engine, fault_proxy("127.0.0.1", engine.port) as wire:
        before, limit_s = [wire.address], FIRST_BYTE_S
        async with upstream_fleet(
            [GOOD], canary, log, before=before, first_byte_s=limit_s
        ) as place:
            wire.blackhole = True
            seen = [await place.ask() for _ in range(2)]
            lost = next(each for each in seen if each.status != 200)
            assert (lost.status, lost.code) == (504, "upstream_timeout")
            assert FIRST_BYTE_S <= lost.seconds < FIRST_BYTE_S + 0.5
            assert place.errors(0, "first_byte_timeout") == 1
            assert (place.retries(), len(place.engines[0].requests)) == (0, 1)
    Report("U3", "accepts, never answers", "504 after first_byte_s, no retry").tell()


@pytest.mark.parametrize("is_polite", [True, False], ids=["closes", "resets"])
async def test_u4_who_breaks_off_before_the_first_byte_is_passed_over(
    canary: Canary, log: io.StringIO, *, is_polite: bool
) -> None:
    """Another answers; where all break off, two are asked, and it is a 502."""

    async def leave(exchange: Exchange) -> None:
        if is_polite:
            exchange.writer.close()
            raise ConnectionError
        await reset(exchange)

    async with upstream_fleet([leave, GOOD], canary, log) as place:
        seen = [await place.ask() for _ in range(6)]
        assert {(each.status, each.body) for each in seen} == {(200, ANSWER)}
        assert place.retries() == place.errors(0, "disconnected") == 3
    async with upstream_fleet([leave, leave, leave], canary, log) as place:
        lost = await place.ask()
        assert (lost.status, lost.code) == (502, "upstream_connect")
        assert sum(len(engine.requests) for engine in place.engines) == 2
        assert max(len(engine.requests) for engine in place.engines) == 1
    Report(
        "U4",
        f"{'closes' if is_polite else 'resets'} before the first byte",
        "another answers; all alike: 502 after two",
    ).tell()


async def test_u4_a_connection_that_was_idle_is_no_failure_of_the_engine(
    canary: Canary, log: io.StringIO
) -> None:
    """Alone it is asked again at once on a new connection, and its health is as it was."""
    asked = 0

    async def once(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked % 2 == 0:
            await reset(exchange)
        await GOOD(exchange)

    async with upstream_fleet([once], canary, log) as place:
        seen = [await place.ask() for _ in range(12)]
        assert {each.status for each in seen} == {200}
        assert place.retries() == 11
        standing = place.endpoint(0).standing
        assert (standing.failures, standing.is_out) == (0, False)
        assert standing.outcomes == 0
    Report("U4", "closes used connections at the next request", "asked again, no fault").tell()


async def test_u4_clients_that_leave_meanwhile_leave_nothing(
    canary: Canary, log: io.StringIO
) -> None:
    """Requests are given up while their retry waits: the budget gets all back."""
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await release.wait()
        await GOOD(exchange)

    async with upstream_fleet([reset, slow], canary, log) as place:
        asked = [asyncio.create_task(place.ask()) for _ in range(6)]
        await asyncio.sleep(0.2)
        assert place.running.core.http._retries.under_way == 3
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await place.leave()
        release.set()

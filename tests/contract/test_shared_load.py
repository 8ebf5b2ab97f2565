"""Routers that share what they have under way through a real Redis."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from kvatlas.cli.fleet import MODEL, Fleet, FleetPlan, running_fleet
from kvatlas.cli.redis_server import running_redis
from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.ids import BlockHash, EndpointName, ModelName
from kvatlas.common.keyspace import LoadKeys
from kvatlas.common.redis_client import connect
from kvatlas.router.flight_log import FlightLog
from kvatlas.router.flight_logs import new_router_id
from kvatlas.router.flight_stream import Clients
from kvatlas.router.flights import Board, Launch
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.predictions import sketch_of

KEYS = LoadKeys(ModelName("m"))
A, B = EndpointName("a:1"), EndpointName("b:1")
CHAIN = [BlockHash(7_000_000 + i) for i in range(200)]


@asynccontextmanager
async def flight_log(redis_url: str, *, runs: bool = False) -> AsyncIterator[FlightLog]:
    """Keep the board of one router."""
    reader = connect(redis_url, timeout_s=1.0, connections_max=None, reads_only=True)
    writer = connect(redis_url, timeout_s=1.0, connections_max=None)
    board = Board(new_router_id(), 1_000.0)
    log = FlightLog(KEYS, Clients(reader, writer), board, RouterMetrics())
    await reader.ping()
    await writer.ping()
    task = asyncio.create_task(log.run()) if runs else None
    try:
        yield log
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await log.aclose()
        await reader.aclose()
        await writer.aclose()


async def fresh(log: FlightLog) -> None:
    """Read what is new, as a decision does."""
    await log.end_refresh(log.begin_refresh())


async def until(check: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    end = monotonic() + seconds
    while not check():
        assert monotonic() < end, "it did not come about"
        await asyncio.sleep(0.005)


def counts(log: FlightLog, name: EndpointName = A) -> tuple[int, int, int]:
    """Give requests, those that wait, and their tokens."""
    stand = log.board.stand(name)
    return stand.requests, stand.awaiting, stand.tokens


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_the_next_decision_sees_the_last_one(redis_url: str) -> None:
    """Launch, first byte and end of a flight are on the board of a router that is known at once."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        await two._tell_state()
        await fresh(one)
        launch = Launch(0, A, 900, sketch=sketch_of(CHAIN, 50), session=5)
        with closing(one.flight(launch)) as flight:
            await asyncio.sleep(0)
            await fresh(two)
            assert counts(one) == counts(two) == (1, 1, 900)
            assert two.board.predicted(CHAIN, monotonic()) == {A: 200}
            assert two.board.session_endpoint(5) == A
            flight.began()
            flight.began()
            await asyncio.sleep(2 * limits.FLIGHTS_TOLD_S)
            await fresh(two)
            assert counts(one) == counts(two) == (1, 0, 0)
        await asyncio.sleep(2 * limits.FLIGHTS_TOLD_S)
        await fresh(two)
        assert counts(one) == counts(two) == (0, 0, 0)


async def test_a_decision_costs_one_write(redis_url: str) -> None:
    """A launch is one entry of bounded size, however long the prompt, and the rest one more."""
    chain = [BlockHash(i) for i in range(1, 10_000)]
    async with flight_log(redis_url) as log, Redis.from_url(redis_url) as client:
        with closing(log.flight(Launch(0, A, 160_000, sketch=sketch_of(chain, 0)))) as flight:
            await asyncio.sleep(0.02)
            entries = await client.xrange(KEYS.flights)
            assert entries is not None
            ((_, fields),) = entries
            assert fields is not None
            assert sum(len(name) + len(value) for name, value in fields.items()) < 1_000
            flight.began()
        await asyncio.sleep(0.02)
        assert await client.xlen(KEYS.flights) == 2


async def test_decisions_of_one_moment_share_a_write(redis_url: str) -> None:
    """A burst of launches in one turn of the loop is one entry."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        flights = [one.flight(Launch(0, A, 10)) for _ in range(20)]
        await asyncio.sleep(0.02)
        async with Redis.from_url(redis_url) as client:
            assert await client.xlen(KEYS.flights) == 1
        await fresh(two)
        assert counts(two) == (20, 20, 200)
        for each in flights:
            each.close()


async def test_a_state_tells_what_waits_first(redis_url: str) -> None:
    """A launch that has not been told when a state is told is told whole, and before it."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        with closing(one.flight(Launch(0, A, 900, sketch=sketch_of(CHAIN, 50)))) as flight:
            await one._tell_state()
            assert flight.entry.place is not None
            await fresh(two)
            assert counts(two) == (1, 1, 900)
            assert two.board.predicted(CHAIN, monotonic()) == {A: 200}


async def test_a_new_router_knows_all_from_the_start(redis_url: str) -> None:
    """It reads the states of all that live."""
    async with flight_log(redis_url, runs=True) as one:
        with closing(one.flight(Launch(0, A, 900))), closing(one.flight(Launch(0, B, 50))) as other:
            other.began()
            await asyncio.sleep(limits.ROUTER_STATE_S + 0.2)
            async with Redis.from_url(redis_url) as client:
                await client.xtrim(KEYS.flights, maxlen=1, approximate=False)
                assert 0 < await client.ttl(KEYS.flights) <= limits.FLIGHT_LOG_S
            async with flight_log(redis_url) as two:
                await fresh(two)
                assert (counts(two, A), counts(two, B)) == ((1, 1, 900), (1, 0, 0))
                assert two.board.routers == 2


async def test_a_new_router_learns_true_speeds_from_what_was_before(redis_url: str) -> None:
    """What it reads late is dated as it was: an engine is not taken for a hundred times faster."""
    async with Redis.from_url(redis_url) as client:
        now_ms = int(time.time() * 1e3) - 3_000
        for number in range(12):
            launched = f'[[{number},"{A}",100,false,null,"",""]]'
            at_ms = now_ms + 200 * number
            began = f"[{number}]"
            await client.xadd(KEYS.flights, {"router": "r", "launched": launched}, id=f"{at_ms}-0")
            at_ms += 100
            await client.xadd(KEYS.flights, {"router": "r", "began": began}, id=f"{at_ms}-0")
    async with flight_log(redis_url) as log:
        await fresh(log)
        assert log.board.stand(A).speed.line.answers >= 8
        assert 700 < log.board.stand(A).speed.line.tokens_per_s < 1_300


async def test_a_decision_that_stands_is_made_again_once(redis_url: str) -> None:
    """A contested flight that stays where it is has heard all that was told before it."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        with closing(two.flight(Launch(0, B, 5))):
            await asyncio.sleep(0.02)
            await fresh(one)
            with closing(one.flight(Launch(0, A, 5))) as flight:
                flight.heard = (0, 0)
                assert await flight.is_contested()
                flight.lift()
                flight.fly_to(Launch(0, A, 5))
                assert not await flight.is_contested()
                assert counts(one) == (1, 1, 5)


async def test_what_was_missed_is_made_good(redis_url: str) -> None:
    """An entry that was lost on the way is in the next state."""
    async with flight_log(redis_url, runs=True) as one, flight_log(redis_url, runs=True) as two:
        with closing(one.flight(Launch(0, A, 900))):
            await asyncio.sleep(0)
            async with Redis.from_url(redis_url) as client:
                await client.delete(KEYS.flights)
            await until(lambda: counts(two) == (1, 1, 900))
        await until(lambda: counts(two) == (0, 0, 0))


async def test_a_router_that_dies_leaves_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flights count until it has been silent for long, and no longer."""
    monkeypatch.setattr(limits, "ROUTER_SILENT_S", 0.5)
    monkeypatch.setattr(limits, "ROUTER_STATE_S", 0.1)
    monkeypatch.setattr(limits, "BOARD_POLL_S", 0.05)
    async with flight_log(redis_url, runs=True) as lives:
        async with flight_log(redis_url) as dies:
            dies.flight(Launch(0, A, 900, sketch=sketch_of(CHAIN, 0)))
            await asyncio.sleep(0.02)
            # It goes without a word.
            monkeypatch.setattr(dies, "aclose", dies.board.under_way)
            await until(lambda: counts(lives) == (1, 1, 900))
            monkeypatch.setattr(dies, "aclose", lambda: asyncio.sleep(0))
        await until(lambda: counts(lives) == (0, 0, 0))
        assert lives.board.predicted(CHAIN, monotonic()) == {}
        assert lives.board.routers == 1


async def test_a_frozen_redis_makes_the_board_blind_and_holds_nobody_up() -> None:
    """Trust falls with age, decisions do not wait, and all is seen again afterwards."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder, running_redis(Path(folder)) as redis:
        async with flight_log(redis.url, runs=True) as one, flight_log(redis.url, runs=True) as two:
            with closing(one.flight(Launch(0, A, 900))), closing(two.flight(Launch(0, A, 100))):
                await until(lambda: counts(two) == (2, 2, 1_000))
                assert two.trust(monotonic()) == 1.0
                with frozen(redis.pid):
                    begun = monotonic()
                    await fresh(two)
                    assert monotonic() - begun < 1.0
                    await until(lambda: two.trust(monotonic()) == 0.0)
                    await until(lambda: counts(two) == (1, 1, 100))
                    assert two.board.stand(A).copies == 2
                    begun = monotonic()
                    for _ in range(100):
                        await fresh(two)
                    assert monotonic() - begun < 1.0, "nobody waits for who does not answer"
                await until(lambda: counts(two) == (2, 2, 1_000))
                assert two.trust(monotonic()) == 1.0
                assert two.board.stand(A).copies == 1


async def test_one_that_leaves_takes_no_reading_from_others(redis_url: str) -> None:
    """A decision that is cancelled while it waits harms no other."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        with closing(one.flight(Launch(0, A, 5))):
            await asyncio.sleep(0.02)
            leaves = asyncio.create_task(fresh(two))
            stays = asyncio.create_task(fresh(two))
            await asyncio.sleep(0)
            leaves.cancel()
            await stays
            assert counts(two) == (1, 1, 5)


async def test_entries_of_a_foreign_hand_harm_nothing(redis_url: str) -> None:
    """What cannot be read is counted and passed over; a key of another type only ages the board."""
    async with flight_log(redis_url) as one, flight_log(redis_url) as two:
        async with Redis.from_url(redis_url) as client:
            await client.xadd(KEYS.flights, {"router": "x", "launched": "spam"})
            with closing(one.flight(Launch(0, A, 5))):
                await asyncio.sleep(0.02)
                await fresh(two)
                assert counts(two) == (1, 1, 5)
            await client.delete(KEYS.flights)
            await client.set(KEYS.flights, "spam")
            await fresh(two)
            with closing(two.flight(Launch(0, A, 5))):
                await asyncio.sleep(0.02)
        errors = two._metrics.board_errors
        assert errors.labels("foreign_entry").value == 1
        assert errors.labels("wrongtype").value >= 2


# --- whole routers --------------------------------------------------------------------------------


def body(content: str) -> dict[str, Any]:
    """Write a streamed request."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 4,
        "stream": True,
    }


async def burst(fleet: Fleet, contents: list[str]) -> Counter[str]:
    """Send requests at once, by turns to all routers; count where those with prompts went."""
    async with aiohttp.ClientSession() as client:

        async def one(number: int, content: str) -> str | None:
            port = fleet.routers[number % len(fleet.routers)].port
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with client.post(url, json=body(content)) as reply:
                text = await reply.text()
                assert reply.status == 200, text
                # Where there was no time to tokenize, nothing is known of the prompt.
                is_known = "x-kvatlas-fallback" not in reply.headers
                return str(reply.headers["x-kvatlas-endpoint"]) if is_known else None

        went = await asyncio.gather(*(one(n, each) for n, each in enumerate(contents)))
        with_prompts = [endpoint for endpoint in went if endpoint is not None]
        assert len(with_prompts) > len(contents) / 2
        return Counter(with_prompts)


async def known(fleet: Fleet, contents: list[str]) -> None:
    """Have each router tokenize what `burst` will send it, so that in the burst there is time."""
    async with aiohttp.ClientSession() as client:
        for number, content in enumerate(contents):
            router = fleet.routers[number % len(fleet.routers)]
            url = f"http://127.0.0.1:{router.admin_port}/explain"
            for _ in range(200):
                async with client.post(url, json={"body": body(content)}) as reply:
                    if (await reply.json())["fallback"] is None:
                        break
            else:
                raise AssertionError("a prompt is never ready in time")


async def acquainted(fleet: Fleet) -> None:
    """Wait until each router has heard of all others."""
    async with aiohttp.ClientSession() as client:
        for router in fleet.routers:
            url = f"http://127.0.0.1:{router.admin_port}/metrics"
            known = f'kvatlas_router_routers{{model="{MODEL}"}} {len(fleet.routers):.1f}'
            for _ in range(200):
                async with client.get(url) as reply:
                    if known in await reply.text():
                        break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("a router is alone")


PLAN = FleetPlan(
    engines=4,
    routers=3,
    router={"debug_headers": True, "lookup_s": 2.0},
    engine={"prefill_tokens_per_s": 4_000.0},
)


@pytest.mark.timeout(90)
def test_bursts_neither_scatter_nor_pile_up() -> None:
    """A long cold prefix goes to an engine or two, strange prompts to all, whatever the routers."""
    with running_fleet(PLAN) as fleet:
        asyncio.run(acquainted(fleet))
        shared = "The same long document about the canals of the old town. " * 800
        questions = [f"{shared} Question {n}." for n in range(12)]
        asyncio.run(known(fleet, questions))
        together = asyncio.run(burst(fleet, questions))
        assert len(together) <= 2, together
        strangers = [f"{n}: {json.dumps([n] * 40)} " * 12 for n in range(12)]
        asyncio.run(known(fleet, strangers))
        apart = asyncio.run(burst(fleet, strangers))
        assert len(apart) == 4
        assert max(apart.values()) <= 5, apart

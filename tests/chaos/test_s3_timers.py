"""S3, the wall clock jumps while something waits: timers, ejections, epochs, leases stay."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.chaos.test_s3_wall_clock import HOUR_S, JUMPING
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import ChaosPlace, Scale, chaos_place
from tests.fakes.door import chat
from tests.fakes.engines import router_settings, until
from tests.fakes.router_process import router_processes
from tests.fakes.upstream import SSE_HEAD, Exchange, plain, upstream

JUMPS_S = (HOUR_S, -HOUR_S, 0)


def jumping(folder: Path) -> tuple[dict[str, str], Callable[[float], None]]:
    """Give the environment of a process whose wall clock is moved, and what moves it."""
    offset, site = folder / "offset", folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(JUMPING)

    def jump(seconds: float) -> None:
        beside = folder / "offset.new"
        beside.write_text(str(seconds))
        beside.replace(offset)

    jump(0)
    path = f"{site}:{os.environ.get('PYTHONPATH', '')}"
    return {"PYTHONPATH": path, "TEST_CLOCK_FILE": str(offset)}, jump


@pytest.mark.timeout(60)
async def test_s3_streams_and_ejections_go_by_another_clock(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """A stream is not cut for being an hour old, and who is out stays out."""
    may_end = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b'data: {"choices": []}\n\n')
        await may_end.wait()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.send(b"0\r\n\r\n")

    environment, jump = jumping(tmp_path)
    async with (
        upstream(waits) as good,
        upstream(plain(b"{}", "500 Failed")) as bad,
        aiohttp.ClientSession() as session,
    ):
        settings = router_settings(
            [f"http://127.0.0.1:{each.port}" for each in (good, bad)],
            redis_url,
            policy="round-robin",
            ejection={"failures": 2, "pause_s": 300},
            first_byte_s=20,
            stream_idle_s=20,
        )
        with router_processes(tmp_path, settings) as [router]:
            router.stop()
            router.start(environment)
            await router.ready()

            async def ask() -> bytes:
                body = chat(canary.text, stream=True)
                async with session.post(router.url + CHAT_PATH, json=body) as reply:
                    return await reply.read()

            asked = [asyncio.create_task(ask()) for _ in range(8)]
            await until(lambda: len(router.events("endpoint.ejected")) == 1)
            await until(lambda: len(good.requests) >= 4)
            for seconds in JUMPS_S:
                jump(seconds)
                await asyncio.sleep(0.5)
                asked.append(asyncio.create_task(ask()))
            await until(lambda: len(good.requests) >= 7)
            may_end.set()
            ends = await asyncio.gather(*asked)
            assert all(end.endswith(b"[DONE]\n\n") for end in ends[-len(JUMPS_S) :])
            assert not router.events("endpoint.returned")
            assert len(router.events("endpoint.ejected")) == 1
            canary.look("log", router.log.read_text())
    Report(
        "S3",
        "the wall clock jumps by +-1 h beside streams and an ejection of 300 s",
        "streams end whole, the endpoint stays out",
    ).tell()


async def test_s3_epochs_leases_and_matches_stay(
    scale: Scale, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an indexer follows it follows on, in the same epochs."""
    real, offset = time.time, [0.0]
    async with chaos_place(scale, canary) as place:
        monkeypatch.setattr(time, "time", lambda: real() + offset[0])
        await place.batches()
        await place.settled()
        before = epochs(place)
        for seconds in JUMPS_S:
            offset[0] = seconds
            assert abs(time.time() - real() - seconds) < 1
            await place.batches()
            await place.settled()
            await asyncio.sleep(0.3)
            for engine in place.engines:
                assert await place.is_matched(engine)
        assert epochs(place) == before
        assert place.running.readiness() is None
        monkeypatch.undo()
    Report(
        "S3",
        "the indexer's wall clock jumps by +-1 h under load",
        "the same epochs and leases; every prompt is matched",
    ).tell()


def epochs(place: ChaosPlace) -> dict[str, str]:
    """Read the epoch of each engine from Redis."""
    with place.server.client() as client:
        return {
            each.name: str(client.hget(place.fleet.shard_of(each).endpoint(each.name), "epoch"))
            for each in place.engines
        }

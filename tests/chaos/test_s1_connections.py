"""S1, what becomes of connections while a router stops: nobody fails who was told nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from kvatlas.common.prompt import CHAT_PATH
from tests.chaos.conftest import Report
from tests.chaos.test_s1_sigterm import never_ends, streams
from tests.fakes.canary import Canary
from tests.fakes.door import ANSWER, chat
from tests.fakes.engines import router_settings, until
from tests.fakes.kept import Kept
from tests.fakes.router_process import router_processes
from tests.fakes.upstream import Exchange, plain, upstream

PRE_STOP_S = 1.5
DONE = b"data: [DONE]\n\n\r\n0\r\n\r\n"
CLOSE = b"\r\nconnection: close\r\n"
LARGE = 20_000_000


async def either(exchange: Exchange) -> None:
    """Stream where that is asked for."""
    await (streams if b'"stream": true' in exchange.body else plain(ANSWER))(exchange)


@pytest.mark.timeout(60)
async def test_s1_idle_connections_live_to_the_end_of_the_pre_stop(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """What comes on one is answered; a stream whose head promised to keep it does so."""
    async with upstream(either) as engine:
        settings = router_settings(
            [f"http://127.0.0.1:{engine.port}"], redis_url, pre_stop_s=PRE_STOP_S
        )
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()
            used, idle, streamed = [await Kept.open(router.port) for _ in range(3)]
            for each in (used, idle):
                assert CLOSE not in (await each.ask())[0]
            streamed.send(chat(canary.text, stream=True))
            await until(lambda: len(engine.requests) == 3)
            await streamed.reader.readexactly(1)
            router.signal(signal.SIGTERM)
            began = time.monotonic()
            await until(lambda: bool(router.events("router.draining")))
            head, body = await used.ask()
            assert (body, CLOSE in head) == (ANSWER, True)
            assert await used.is_closed(0.5)
            # Its head was out before the signal.
            head, body = await streamed.answer()
            assert (body.endswith(DONE), CLOSE in head) == (True, False)
            head, body = await streamed.ask()
            assert (body, CLOSE in head) == (ANSWER, True)
            assert not await idle.is_closed(0.05)
            assert time.monotonic() - began < PRE_STOP_S, "all of it was before its end"
            assert await idle.is_closed(3.0)
            assert time.monotonic() - began >= PRE_STOP_S
            assert await asyncio.to_thread(router.wait) == 0
            with pytest.raises(ConnectionRefusedError):
                await Kept.open(router.port)
            for each in (used, idle, streamed):
                each.writer.close()
            canary.look("log", router.log.read_text())
    Report(
        "S1",
        "SIGTERM beside idle connections",
        "answered on to the end of the pre-stop, with `Connection: close`; closed then",
    ).tell()


@pytest.mark.timeout(60)
async def test_s1_a_slow_reader_gets_all_of_its_answer(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """The engine is done with it; the process waits until it has left."""
    async with upstream(plain(b"x" * LARGE)) as engine:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url, drain_s=10)
        with router_processes(tmp_path, settings) as [router]:
            await router.ready()
            client = await Kept.open(router.port)
            client.send(chat(canary.text))
            await until(lambda: len(engine.requests) == 1)
            router.signal(signal.SIGTERM)
            await until(lambda: bool(router.events("router.closed")))
            await asyncio.sleep(0.5)
            assert len((await client.answer())[1]) == LARGE
            client.writer.close()
            assert await asyncio.to_thread(router.wait) == 0
            assert not router.events("router.drain_exceeded")
            canary.look("log", router.log.read_text())
    Report("S1", "SIGTERM beside a client that reads slowly", "it gets all of its answer").tell()


@pytest.mark.timeout(60)
async def test_s1_requests_of_a_former_configuration_count(
    canary: Canary, redis_url: str, tmp_path: Path
) -> None:
    """Their streams have the drain budget as well, and are torn behind it."""
    async with (
        upstream(never_ends) as engine,
        upstream(plain(ANSWER)) as other,
        aiohttp.ClientSession() as session,
    ):
        drain_s = 0.8
        first, second = (
            router_settings([f"http://127.0.0.1:{each.port}"], redis_url, drain_s=drain_s)
            for each in (engine, other)
        )
        with router_processes(tmp_path, first) as [router]:
            await router.ready()
            body = chat(canary.text, stream=True)
            async with session.post(router.url + CHAT_PATH, json=body) as reply:
                await reply.content.readany()
                router.write(second)
                await until(lambda: bool(router.events("config.changed")), 15)
                router.signal(signal.SIGTERM)
                began = time.monotonic()
                with pytest.raises(aiohttp.ClientError):
                    await reply.read()
                assert drain_s * 0.9 < time.monotonic() - began < drain_s + 2
            assert await asyncio.to_thread(router.wait) == 0
            assert [each["requests"] for each in router.events("router.draining")] == [1]
            assert [each["torn"] for each in router.events("router.drain_exceeded")] == [1]
            canary.look("log", router.log.read_text())
        await until(lambda: engine.closed_early == 1)
    Report(
        "S1",
        "SIGTERM beside a stream of a configuration that was replaced",
        "it has the drain budget too, then it is torn; exit 0",
    ).tell()

"""U5 to U7 and I1, an engine fails behind its first byte: the client sees it, whatever it reads."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from kvatlas.cli.bound import bound_command
from kvatlas.common.prompt import CHAT_PATH, MESSAGES_PATH, demo_model_path
from tests.chaos.conftest import Report
from tests.fakes.canary import Canary
from tests.fakes.engines import until
from tests.fakes.redis_servers import free_port
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange
from tests.fakes.upstream_fleet import GOOD, Seen, upstream_fleet

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"id": "1", "choices": []}\n\n'
ANTHROPIC = b'event: ping\ndata: {"type": "ping"}\n\n'
IDLE_S = 0.3
START_S = 20.0


def breaks(head: bytes, piece: bytes, how: str, *, is_chunked: bool = True) -> Behaviour:
    """Begin an answer and break it off."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head)
        await (exchange.chunk(piece) if is_chunked else exchange.send(piece))
        await asyncio.sleep(0.05)
        if how == "stalls":
            await exchange.reader.read()  # until the router goes
        elif how == "closes":
            exchange.writer.close()
        else:
            exchange.reset()
        raise ConnectionError

    return behave


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_u5_a_stream_that_breaks_ends_with_an_error(
    canary: Canary, log: io.StringIO, how: str
) -> None:
    """At the end of an event the client is told in its words; [DONE] never comes."""
    ways: list[tuple[str, bytes]] = [(CHAT_PATH, EVENT), (MESSAGES_PATH, ANTHROPIC)]
    for path, event in ways:
        behaviour = breaks(SSE_HEAD, event, how)
        async with upstream_fleet([behaviour, behaviour], canary, log) as place:
            seen = await place.ask(path, stream=True)
            assert (seen.status, seen.is_torn) == (200, True)
            first, told, rest = seen.body.split(b"\n\n")
            assert first + b"\n\n" == event
            assert (rest, b"[DONE]" in seen.body) == (b"", False)
            if path == MESSAGES_PATH:
                name, _, told = told.partition(b"\n")
                assert name == b"event: error"
                assert json.loads(told[6:])["type"] == "error"
            assert json.loads(told.removeprefix(b"data: "))["error"]["message"]
            assert place.errors(0, "broken") + place.errors(1, "broken") == 1
            assert place.retries() == 0
            assert place.count("errors_total", model="m", reason="torn") == 1
            assert place.told("request.finished", outcome="torn")
    Report("U5", f"{how} at the end of an event", "an error event, then torn").tell()


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize(
    ("what", "head", "is_chunked"),
    [
        ("inside an event", SSE_HEAD, True),
        ("inside JSON with a length", JSON_HEAD + b"Content-Length: 100\r\n\r\n", False),
        ("inside JSON in chunks", JSON_HEAD + CHUNKED, True),
    ],
)
async def test_u5_what_breaks_inside_gets_no_word_of_ours(
    canary: Canary, log: io.StringIO, how: str, what: str, head: bytes, *, is_chunked: bool
) -> None:
    """Half an event or object would swallow it: the connection just breaks off."""
    piece = b'data: {"a": ' if head is SSE_HEAD else b'{"a": '
    behaviour = breaks(head, piece, how, is_chunked=is_chunked)
    async with upstream_fleet([behaviour], canary, log) as place:
        seen = await place.ask(stream=head is SSE_HEAD)
        assert (seen.status, seen.body, seen.is_torn) == (200, piece, True)
        assert place.errors(0, "broken") == 1
    Report("U5", f"{how} {what}", "torn, nothing added").tell()


async def test_u5_a_reset_without_length_or_chunks_is_seen(
    canary: Canary, log: io.StringIO
) -> None:
    """Where only the connection's end is the answer's, a reset is none."""
    behaviour = breaks(
        JSON_HEAD + b"Connection: close\r\n\r\n", b'{"a": ', "resets", is_chunked=False
    )
    async with upstream_fleet([behaviour], canary, log) as place:
        seen = await place.ask()
        assert (seen.status, seen.is_torn) == (200, True)
    Report("U5", "resets inside JSON without a length", "torn").tell()


@asynccontextmanager
async def engine_process(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a simulated engine as a process of its own."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "engine.yaml"
    config.write_text(
        yaml.safe_dump({
            "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
            "engine": {
                "port": int(address.split(":")[1]), "events": None, "replay": None,
                "decode_step_ms": 20,
            },
        })
    )  # fmt: skip
    line = [sys.executable, "-m", "kvatlas.cli.main", "engine", "--config", str(config)]
    with (folder / "engine.log").open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - it is there at once
            bound_command(line), stdout=out, stderr=out
        )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(START_S):
            while not await _answers(session, address):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait(5)


async def _answers(session: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with session.get(f"http://{address}/v1/models") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.timeout(60)
async def test_u5_an_engine_that_is_killed_tears_all_its_streams(
    canary: Canary, log: io.StringIO, tmp_path: Path
) -> None:
    """Kill -9 of a real process: each stream ends in an error, who comes next goes elsewhere."""
    async with (
        engine_process(tmp_path) as (process, address),
        upstream_fleet([GOOD], canary, log, before=[address], metrics_interval_s=0.1) as place,
    ):
        asked = [asyncio.create_task(place.ask(stream=True, max_tokens=500)) for _ in range(10)]
        one = place.endpoint(0)
        await until(lambda: one.requests == 5 and not one.awaiting)
        process.kill()
        seen: list[Seen] = await asyncio.gather(*asked)
        torn = [each for each in seen if each.is_torn]
        assert len(torn) == 5
        for each in torn:
            assert each.status == 200
            last = each.body.rstrip(b"\n").rpartition(b"\n\n")[2]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
            assert b"[DONE]" not in each.body
        later = [await place.ask() for _ in range(10)]
        assert {each.status for each in later} == {200}
    Report(
        "U5", "kill -9 of an engine with 5 streams", "5 error events, torn; then elsewhere"
    ).tell()


async def test_u6_a_clean_end_without_done_passes_and_is_counted(
    canary: Canary, log: io.StringIO
) -> None:
    """Nothing can be said against it but how often it happens."""

    async def cut_short(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(EVENT)
        await exchange.send(b"0\r\n\r\n")

    async with upstream_fleet([cut_short], canary, log) as place:
        seen = await place.ask(stream=True)
        assert (seen.status, seen.body, seen.is_torn) == (200, EVENT, False)
        assert place.count("streams_not_done_total", endpoint=place.endpoint(0).name) == 1
    Report("U6", "a stream ends without [DONE]", "passes, counted").tell()


async def test_u7_a_stream_that_stalls_is_torn(canary: Canary, log: io.StringIO) -> None:
    """After `stream_idle_s` without a byte it ends as one that breaks; the engine is left."""
    behaviour = breaks(SSE_HEAD, EVENT, "stalls")
    async with upstream_fleet([behaviour], canary, log, stream_idle_s=IDLE_S) as place:
        seen = await place.ask(stream=True)
        assert (seen.status, seen.is_torn) == (200, True)
        assert b'"upstream_failed"' in seen.body
        assert IDLE_S <= seen.seconds < IDLE_S + 0.7
        assert place.errors(0, "idle") == 1
    Report("U7", "a stream stalls", "torn after stream_idle_s, with an error event").tell()

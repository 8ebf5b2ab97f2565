"""The shared connection: replies find their callers, whatever happens to others or to Redis."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from kvatlas.cli.redis_server import RedisServer, running_redis
from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.redis_client import connect, guard
from kvatlas.common.redis_pipe import SharedRedis
from kvatlas.common.setting_sections import RedisSettings

SILENCE_S = 0.3


@dataclass
class Pipe:
    """A shared connection, and its errors as ours."""

    redis: SharedRedis

    async def call(self, *command: Any) -> Any:
        """Run a command."""
        with guard():
            return await self.redis.execute_command(*command)


def pipe_to(server: RedisServer, **more: Any) -> Pipe:
    """Make a pipe to a server's unix socket."""
    settings = RedisSettings(url=server.url, **more)
    made = connect(settings, timeout_s=SILENCE_S, connections_max=None)
    assert isinstance(made, SharedRedis)
    return Pipe(made)


@pytest.fixture
async def pipe(redis_server: RedisServer) -> AsyncIterator[Pipe]:
    """Give a pipe to the session's Redis."""
    made = pipe_to(redis_server)
    yield made
    await made.redis.aclose()


async def test_replies_are_redis_own(pipe: Pipe) -> None:
    """Strings, numbers, nothing and lists come back as Redis sent them."""
    assert await pipe.call("SET", "pipe:a", b"\x00\xff") == b"OK"
    assert await pipe.call("GET", "pipe:a") == b"\x00\xff"
    assert await pipe.call("GET", "pipe:none") is None
    assert await pipe.call("EVAL", "return {1, 'a', {2}}", 0) == [1, b"a", [2]]


async def test_what_is_asked_at_once_travels_together(pipe: Pipe) -> None:
    """A thousand calls of one turn of the loop use one connection and far fewer writes."""
    await pipe.call("PING")
    before = await pipe.call("INFO", "stats")
    answers = await asyncio.gather(*(pipe.call("ECHO", str(n)) for n in range(1_000)))
    assert answers == [str(n).encode() for n in range(1_000)]
    after = await pipe.call("INFO", "stats")

    def number(page: bytes, name: bytes) -> int:
        return int(page.split(name + b":")[1].split()[0])

    connections = b"total_connections_received"
    assert number(after, connections) == number(before, connections)
    reads = b"total_reads_processed"
    assert number(after, reads) - number(before, reads) < 100


async def test_the_first_of_a_turn_leaves_at_once(pipe: Pipe, redis_server: RedisServer) -> None:
    """Redis works on it while others are written, in groups of 2, 4, ...; the rest waits."""
    await pipe.call("DEL", "pipe:turn")
    wire = await pipe.redis.wire()
    replies: list[asyncio.Future[Any]] = []
    with Redis.from_url(redis_server.url) as client:

        def arrived() -> int:
            return int(client.llen("pipe:turn"))

        for sent, expected in ((1, 1), (2, 1), (3, 3), (4, 3), (7, 7), (8, 7)):
            while len(replies) < sent:
                replies.append(wire.send(("RPUSH", "pipe:turn", "x")))
            deadline = time.monotonic() + 2
            while arrived() < expected and time.monotonic() < deadline:
                time.sleep(0.001)  # noqa: ASYNC251 - the loop must not turn
            time.sleep(0.01)  # noqa: ASYNC251 - the same: what is held back does not come later
            assert arrived() == expected
    assert await asyncio.gather(*replies) == list(range(1, 9))


async def test_who_leaves_harms_nobody(pipe: Pipe) -> None:
    """Callers cancelled at any moment leave everybody else's replies where they belong."""
    source = random.Random(1)
    await pipe.call("PING")
    for _ in range(20):
        calls = [asyncio.create_task(pipe.call("ECHO", str(n))) for n in range(50)]
        await asyncio.sleep(source.choice([0, 0, 0.0005]))
        left = {n for n in range(50) if source.random() < 0.4}
        for n in left:
            calls[n].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for n, answer in enumerate(answers):
            assert answer == str(n).encode() or (n in left and isinstance(answer, BaseException))
    assert await pipe.call("ECHO", "last") == b"last"


async def test_who_leaves_during_the_connection_harms_nobody(redis_server: RedisServer) -> None:
    """The attempt to connect is everybody's: it survives the caller that began it."""
    pipe = pipe_to(redis_server)
    first = asyncio.create_task(pipe.call("PING"))
    others = [asyncio.create_task(pipe.call("ECHO", str(n))) for n in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*others) == [str(n).encode() for n in range(5)]
    await pipe.redis.aclose()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("EVALSHA", "0" * 40, 0), "noscript"),
        (("LPUSH", "pipe:text", "x"), "wrongtype"),
        (("NONSENSE",), "responseerror"),
    ],
)
async def test_errors_have_a_reason(
    pipe: Pipe, command: tuple[str | int, ...], reason: str
) -> None:
    """What Redis answers instead of a result is a word of a closed set, and spoils nothing."""
    await pipe.call("SET", "pipe:text", "a")
    with pytest.raises(IndexUnavailable) as caught:
        await pipe.call(*command)
    assert caught.value.reason == reason
    assert await pipe.call("GET", "pipe:text") == b"a"


async def test_too_many_waiting_are_refused(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a call fails at once; those before it are answered."""
    await pipe.call("PING")
    monkeypatch.setattr(limits, "REDIS_WAITING_MAX", 10)
    answers = await asyncio.gather(
        *(pipe.call("ECHO", str(n)) for n in range(15)), return_exceptions=True
    )
    assert answers[:10] == [str(n).encode() for n in range(10)]
    assert [getattr(answer, "reason", None) for answer in answers[10:]] == ["pool"] * 5


async def test_a_redis_that_dies_and_comes_back() -> None:
    """What waits fails at once, then calls fail quickly, then they work again by themselves."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        path = Path(folder)
        with running_redis(path) as server:
            pipe = pipe_to(server)
            assert await pipe.call("PING") == b"PONG"
            os.kill(server.pid, signal.SIGSTOP)
            waiting = asyncio.create_task(pipe.call("PING"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(IndexUnavailable) as caught:
                await asyncio.wait_for(waiting, 2)
            assert caught.value.reason == "connection"
            with pytest.raises(IndexUnavailable):
                await pipe.call("PING")
        with running_redis(path) as server:
            await asyncio.sleep(limits.REDIS_RECONNECT_S)
            assert await pipe.call("PING") == b"PONG"
            await pipe.redis.aclose()


async def test_a_refused_greeting_is_no_connection(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A password that Redis does not want fails the call with its reason."""
    file = tmp_path / "password"
    file.write_text("wrong")
    pipe = pipe_to(redis_server, user="nobody", password_file=file)
    with pytest.raises(IndexUnavailable) as caught:
        await pipe.call("PING")
    assert caught.value.reason == "auth"
    with pytest.raises(IndexUnavailable) as caught:
        await pipe.call("PING")
    assert caught.value.reason == "auth", "the reason stays while nothing is tried"
    await pipe.redis.aclose()


async def test_closing_fails_who_waits_for_the_connection(redis_server: RedisServer) -> None:
    """With a reason, not as if the caller itself had been cancelled."""
    pipe = pipe_to(redis_server)
    waiting = asyncio.create_task(pipe.call("PING"))
    await asyncio.sleep(0)
    await pipe.redis.aclose()
    for call in (waiting, pipe.call("PING")):
        with pytest.raises(IndexUnavailable) as caught:
            await call
        assert caught.value.reason == "connection"


async def test_a_redis_that_does_not_read_is_not_written_to_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes that it has not taken are bounded: calls beyond them are refused at once."""
    monkeypatch.setattr(limits, "REDIS_UNSENT_BYTES_MAX", 1_000_000)
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
    ):
        pipe = pipe_to(server)
        await pipe.call("PING")
        os.kill(server.pid, signal.SIGSTOP)
        calls = []
        for _ in range(20):
            calls.append(asyncio.create_task(pipe.call("ECHO", b"x" * 500_000)))
            await asyncio.sleep(0)
        refused = [call for call in calls if call.done()]
        assert 0 < len(refused) < 20
        for call in refused:
            with pytest.raises(IndexUnavailable) as caught:
                await call
            assert caught.value.reason == "pool"
        os.kill(server.pid, signal.SIGCONT)
        assert await calls[0] == b"x" * 500_000
        await pipe.redis.aclose()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_redis_that_is_silent_is_left() -> None:
    """A connection on which replies are owed for too long is broken off and made anew."""
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
    ):
        pipe = pipe_to(server)
        assert await pipe.call("PING") == b"PONG"
        first = pipe.redis._wire
        os.kill(server.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(pipe.call("PING"))
            await asyncio.sleep(SILENCE_S + 0.1)
            with pytest.raises(IndexUnavailable):
                await asyncio.wait_for(pipe.call("PING"), 1)
            with pytest.raises(IndexUnavailable) as caught:
                await waiting
            assert caught.value.reason == "timeout"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await asyncio.sleep(limits.REDIS_RECONNECT_S + 0.05)
        assert await pipe.call("PING") == b"PONG"
        assert pipe.redis._wire is not first
        await pipe.redis.aclose()


async def test_commands_of_a_pipeline_stay_together(pipe: Pipe) -> None:
    """Whatever else is asked at once, nothing comes between them."""
    await pipe.call("DEL", "pipe:list")

    async def pair(number: int) -> None:
        both = pipe.redis.pipeline(transaction=False)
        both.execute_command("RPUSH", "pipe:list", f"{number} first")
        both.execute_command("RPUSH", "pipe:list", f"{number} second")
        await both.execute()

    await asyncio.gather(*(pair(n) for n in range(100)))
    found = await pipe.call("LRANGE", "pipe:list", 0, -1)
    pairs = [(a.split()[0], b.split()[0]) for a, b in zip(found[::2], found[1::2], strict=True)]
    assert all(a == b for a, b in pairs)
    assert len(pairs) == 100

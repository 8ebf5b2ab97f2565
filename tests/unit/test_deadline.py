"""The limit of a lookup's time: it ends what is late, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from kvatlas.common.deadline import Deadline


async def waits(seconds: float, limit_s: float, grace_s: float = 0.0) -> str:
    """Wait within a limit."""
    with Deadline(limit_s, grace_s):
        await asyncio.sleep(seconds)
    return "done"


async def test_what_is_late_ends_with_a_timeout() -> None:
    """After the whole time, and the task goes on without a trace of it."""
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await waits(10, limit_s=0.05, grace_s=0.02)
    assert time.monotonic() - begun >= 0.05
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)


async def test_what_is_in_time_is_left_alone() -> None:
    """And the limit ends with its context."""
    assert await waits(0, limit_s=0.02, grace_s=0.01) == "done"
    await asyncio.sleep(0.05)


async def test_a_grace_longer_than_the_limit_is_the_limit() -> None:
    """It adds no time."""
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await waits(10, limit_s=0.02, grace_s=5)
    assert time.monotonic() - begun < 1


async def test_a_stall_of_the_loop_leaves_time_for_a_last_look() -> None:
    """What came meanwhile is taken, though the time is over."""
    reader, writer = await asyncio.open_connection(*await echo())
    with Deadline(0.03, 0.02):
        writer.write(b"x")
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - the stall
        assert await reader.readexactly(1) == b"x"
    writer.close()
    await writer.wait_closed()


async def echo() -> tuple[str, int]:
    """Serve one connection that gives bytes back, from a thread, so that no stall stops it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as peer:
            while data := peer.recv(100):
                peer.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    host, port = listener.getsockname()
    return host, port


async def test_another_cancellation_is_not_taken_for_the_limit() -> None:
    """Who is cancelled from outside is cancelled, also when the time is over at that moment."""
    task = asyncio.create_task(waits(10, limit_s=5.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    limit = Deadline(10.0, 0.0)

    async def held() -> None:
        with limit:
            await asyncio.sleep(10)

    both = asyncio.create_task(held())
    await asyncio.sleep(0)
    limit._end()
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both


async def test_errors_inside_pass() -> None:
    """As they are."""
    with pytest.raises(KeyError), Deadline(1.0, 0.1):
        raise KeyError("mine")

"""The load of `make bench-routing` over real HTTP: it is open, and it knows what failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from bench.routing.load import PATH, Shot, drive
from kvatlas.common.admin import serving

STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":" a"}}]}\n\n'
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"

Answer = Callable[[web.Request, int], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Serve chats; the answers are told how many came before. Gives the URL."""
    count = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return await answer(request, count - 1)

    app = web.Application()
    app.router.add_post(PATH, handle)
    async with serving(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def streamed(request: web.Request, *parts: bytes, pause_s: float = 0.0) -> web.StreamResponse:
    """Send the parts, pausing before the first."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(pause_s)
    for part in parts:
        await response.write(part)
    return response


async def test_requests_are_sent_at_their_times_whatever_became_of_earlier_ones() -> None:
    """The first is answered after 0.4 s, the second, due at 0.05 s, before it."""

    async def answer(request: web.Request, before: int) -> web.StreamResponse:
        pause_s = 0.4 if before == 0 else 0.0
        return await streamed(request, STREAM, USAGE, DONE, pause_s=pause_s)

    async with server(answer) as url:
        first, second = await drive([Shot(0.0, url, b"{}"), Shot(0.05, url, b"{}")], 10.0, 5.0)
    assert first.fault is None
    assert second.fault is None
    assert first.ttft_s is not None
    assert first.ttft_s >= 4.0, "seconds of the model, ten to a real one"
    assert second.end_s < 4.0
    assert (second.due_s, second.prompt_tokens) == (0.5, 3)


async def test_time_that_the_load_itself_loses_counts_as_waiting() -> None:
    """A loop that stands still sends late, and the request has waited since it was due."""

    async def answer(request: web.Request, _before: int) -> web.StreamResponse:
        return await streamed(request, STREAM, USAGE, DONE)

    async def stand_still() -> None:
        await asyncio.sleep(0.1)
        time.sleep(0.3)  # noqa: ASYNC251 - on purpose

    async with server(answer) as url:
        late, _ = await asyncio.gather(drive([Shot(0.1, url, b"{}")], 1.0, 5.0), stand_still())
    assert late[0].sent_s - late[0].due_s > 0.15
    assert late[0].ttft_s is not None
    assert late[0].ttft_s > 0.15


async def refused(_request: web.Request, _before: int) -> web.StreamResponse:
    """Be full."""
    return web.Response(status=503)


async def broken_off(request: web.Request, _before: int) -> web.StreamResponse:
    """End a stream before it is over."""
    return await streamed(request, STREAM)


async def silent(request: web.Request, _before: int) -> web.StreamResponse:
    """Send nothing for long."""
    return await streamed(request, DONE, pause_s=30.0)


async def empty(request: web.Request, _before: int) -> web.StreamResponse:
    """Send an answer without text."""
    return await streamed(request, USAGE, DONE)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (refused, "status 503"),
        (broken_off, "unfinished"),
        (silent, "unfinished"),
        (empty, "no text"),
    ],
)
async def test_failures_are_named_and_none_has_a_ttft(answer: Answer, fault: str) -> None:
    """Whether refused, broken off, not answered in time or answered with nothing."""
    async with server(answer) as url:
        (outcome,) = await drive([Shot(0.0, url, b"{}")], 1.0, 0.3)
    assert (outcome.fault, outcome.ttft_s) == (fault, None)

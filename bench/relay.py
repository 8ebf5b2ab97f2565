"""What the proxies have in common that we compare with: serving chats, and passing answers on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from aiohttp import web

BODY_BYTES_MAX: Final = 1 << 24
HEADERS: Final = {"Content-Type": "application/json"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(port: int, handler_of: Callable[[aiohttp.ClientSession], Handler]) -> None:
    """Serve chats at 127.0.0.1 until stopped; `handler_of` makes what answers them."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/chat/completions", handler_of(session))
        app.router.add_get("/readyz", _ready)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


async def stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass an answer on in the pieces that it comes in."""
    kind = {"Content-Type": answer.headers["Content-Type"]}
    response = web.StreamResponse(status=answer.status, headers=kind)
    await response.prepare(request)
    async for piece in answer.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response


async def _ready(_request: web.Request) -> web.Response:
    return web.Response()

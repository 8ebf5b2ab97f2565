"""A bare proxy of aiohttp: what a Python router costs that decides nothing.

python -m bench.proxy.bare --port PORT URL ...
"""

from __future__ import annotations

import argparse
import asyncio
import itertools

import aiohttp
import uvloop
from aiohttp import web

BODY_BYTES_MAX = 1 << 24


class Bare:
    """Send requests around."""

    def __init__(self, engines: list[str], session: aiohttp.ClientSession) -> None:
        self._engines = itertools.cycle(engines)
        self._session = session

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Pass a chat on."""
        body = await request.read()
        url = next(self._engines) + request.path
        headers = {"Content-Type": "application/json"}
        async with self._session.post(url, data=body, headers=headers) as answer:
            kind = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_length is not None:
                whole = await answer.read()
                return web.Response(body=whole, status=answer.status, headers=kind)
            response = web.StreamResponse(status=answer.status, headers=kind)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def _serve(options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/chat/completions", Bare(options.engines, session).chat)
        app.router.add_get("/readyz", _ready)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        await asyncio.Event().wait()


async def _ready(_request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="bench.proxy.bare")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("engines", nargs="+", metavar="URL")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

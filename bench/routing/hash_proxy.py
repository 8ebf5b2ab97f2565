"""A proxy that hashes the beginning of a prompt: the strong cheap way, without any index.

    python -m bench.routing.hash_proxy --port PORT --prefix-chars N URL ...

It does nothing else: no retries, no metrics.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import aiohttp
import orjson
import uvloop
from aiohttp import web

from bench.routing.ring import Ring

BODY_BYTES_MAX = 1 << 24


class HashProxy:
    """Send each chat to the engine that its first characters hash to, while that has room."""

    def __init__(
        self, engines: Sequence[str], prefix_chars: int, session: aiohttp.ClientSession
    ) -> None:
        self._ring = Ring(engines)
        self._prefix_chars = prefix_chars
        self._session = session
        self._loads = dict.fromkeys(engines, 0)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Pass a chat on."""
        body = await request.read()
        text = str(orjson.loads(body)["messages"][0]["content"])
        engine = self._ring.choose(text[: self._prefix_chars].encode(), self._loads)
        self._loads[engine] += 1
        try:
            return await self._relay(request, engine, body)
        finally:
            self._loads[engine] -= 1

    async def _relay(self, request: web.Request, engine: str, body: bytes) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(engine + request.path, data=body, headers=headers) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def _serve(options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        proxy = HashProxy(options.engines, options.prefix_chars, session)
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/chat/completions", proxy.chat)
        app.router.add_get("/readyz", _ready)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        await asyncio.Event().wait()


async def _ready(_request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="bench.routing.hash_proxy")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefix-chars", type=int, required=True)
    parser.add_argument("engines", nargs="+", metavar="URL")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

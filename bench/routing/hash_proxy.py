"""A proxy that hashes the beginning of a prompt: the strong cheap way, without any index.

    python -m bench.routing.hash_proxy --port PORT --prefix-chars N URL ...

It does nothing else: no retries, no metrics.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import aiohttp
import orjson
import uvloop
from aiohttp import web

from bench.relay import HEADERS, Handler, serve, stream
from bench.routing.ring import Ring


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
        async with self._session.post(engine + request.path, data=body, headers=HEADERS) as answer:
            return await stream(request, answer)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="bench.routing.hash_proxy")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefix-chars", type=int, required=True)
    parser.add_argument("engines", nargs="+", metavar="URL")
    options = parser.parse_args()

    def handler_of(session: aiohttp.ClientSession) -> Handler:
        return HashProxy(options.engines, options.prefix_chars, session).chat

    uvloop.run(serve(options.port, handler_of))


if __name__ == "__main__":
    main()

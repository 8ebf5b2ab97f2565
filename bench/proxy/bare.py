"""A bare proxy of aiohttp: what a Python router costs that decides nothing.

python -m bench.proxy.bare --port PORT URL ...
"""

from __future__ import annotations

import argparse
import itertools

import aiohttp
import uvloop
from aiohttp import web

from bench.relay import HEADERS, serve, stream


class Bare:
    """Send requests around."""

    def __init__(self, engines: list[str], session: aiohttp.ClientSession) -> None:
        self._engines = itertools.cycle(engines)
        self._session = session

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Pass a chat on."""
        body = await request.read()
        url = next(self._engines) + request.path
        async with self._session.post(url, data=body, headers=HEADERS) as answer:
            if answer.content_length is not None:
                kind = {"Content-Type": answer.headers["Content-Type"]}
                whole = await answer.read()
                return web.Response(body=whole, status=answer.status, headers=kind)
            return await stream(request, answer)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="bench.proxy.bare")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("engines", nargs="+", metavar="URL")
    options = parser.parse_args()
    uvloop.run(serve(options.port, lambda session: Bare(options.engines, session).chat))


if __name__ == "__main__":
    main()

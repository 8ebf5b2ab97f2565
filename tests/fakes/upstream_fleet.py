"""A router before engines that fail as they are told, and a client that sees how answers end."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from kvatlas.common.prompt import CHAT_PATH, demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from kvatlas.router.endpoint import Endpoint, EngineFacts
from tests.fakes.canary import Canary
from tests.fakes.engines import until
from tests.fakes.upstream import Behaviour, Exchange, Upstream, plain, upstream

ANSWER = b'{"id": "x", "choices": []}'
GOOD = plain(ANSWER)


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request.

    Attributes:
        is_torn: whether the answer broke off.
        seconds: how long it took.
    """

    status: int
    body: bytes
    is_torn: bool
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """Give the code of an error."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def endpoint(self) -> str:
        """Give who answered."""
        return self.headers.get("x-kvatlas-endpoint", "")


@dataclass
class UpstreamFleet:
    """All that runs."""

    running: Running
    session: aiohttp.ClientSession
    engines: Sequence[Upstream]
    canary: Canary
    log: io.StringIO

    async def ask(self, path: str = CHAT_PATH, *, stream: bool = False, **more: Any) -> Seen:
        """Send a request that holds the canary; see how its answer ends."""
        text = self.canary.text
        chat = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
        body = {**chat, **more, "stream": stream}
        began, received = time.monotonic(), bytearray()
        headers = {"X-Api-Key": text, "x-secret": text}
        sent = io.BytesIO(json.dumps(body).encode())
        async with self.session.post(path, data=sent, headers=headers) as reply:
            is_torn = False
            try:
                while piece := await reply.content.readany():
                    received += piece
            except aiohttp.ClientError:
                is_torn = True
        spent_s = time.monotonic() - began
        return Seen(reply.status, bytes(received), is_torn, spent_s, dict(reply.headers))

    def endpoint(self, number: int) -> Endpoint:
        """Give an endpoint, in the order of the configuration."""
        return list(self.running.endpoints.all())[number]

    def count(self, name: str, **labels: str) -> float:
        """Read a metric of the router by its name behind `kvatlas_router_`."""
        found = self.running.metrics.registry.get_sample_value(f"kvatlas_router_{name}", labels)
        return found or 0.0

    def errors(self, number: int, kind: str) -> float:
        """Count the failures of an endpoint of one kind."""
        name = self.endpoint(number).name
        return self.count("upstream_errors_total", endpoint=name, kind=kind)

    def retries(self, outcome: str = "sent") -> float:
        """Count retries."""
        return self.count("retries_total", model="m", outcome=outcome)

    def told(self, event: str, **what: Any) -> list[dict[str, Any]]:
        """List the log's lines of one event."""
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event and what.items() <= line.items()]

    def nothing_is_under_way(self) -> bool:
        """Tell whether all that counts what is under way is back at zero."""
        running = self.running
        retries = running.core.http._retries
        return (running.desk.open_requests, retries.under_way, running.pool.under_way) == (
            0, 0, 0,
        ) and all(
            (each.requests, each.awaiting, each.queued_tokens) == (0, 0, 0)
            for each in self.running.endpoints.all()
        )  # fmt: skip

    async def leave(self) -> None:
        """See that nothing leaked."""
        await until(self.nothing_is_under_way)
        self.canary.look_at_metrics(self.running.metrics.registry)


@asynccontextmanager
async def upstream_fleet(
    behaviours: Sequence[Behaviour],
    canary: Canary,
    log: io.StringIO,
    *,
    before: Sequence[str] = (),
    redis_url: str = "redis://127.0.0.1:1/0",
    **options: Any,
) -> AsyncIterator[UpstreamFleet]:
    """Run engines, and a router that knows them, until the context ends.

    Args:
        behaviours: one engine each.
        canary: that nothing may tell.
        log: of the router.
        before: addresses of further engines, which stand before those in the configuration.
        redis_url: by default nobody is there: requests go by load.
        options: of the router.
    """
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(upstream(each)) for each in behaviours]
        addresses = [*before, *(f"127.0.0.1:{each.port}" for each in engines)]
        settings = Settings.model_validate({
            "redis": {"url": redis_url},
            "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
            "endpoints": [{"url": f"http://{each}", "model": "m"} for each in addresses],
            "router": {
                "port": 0, "admin_port": 0, "debug_headers": True, "drain_s": 1,
                "policy": "round-robin", "metrics_interval_s": 60, **options,
            },
        })  # fmt: skip
        running = await stack.enter_async_context(router(settings))
        session = aiohttp.ClientSession(f"http://127.0.0.1:{running.port}")
        await stack.enter_async_context(session)
        await until(lambda: running.readiness() is None)
        place = UpstreamFleet(running, session, engines, canary, log)
        for number in range(len(before)):
            # As if it had been there before: who has never been asked what it serves gets nothing.
            place.endpoint(number).facts = EngineFacts(asked=True)
        yield place
        await place.leave()


@contextmanager
def refused() -> Iterator[str]:
    """Give an address where nobody listens, and nobody will while the context lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """Give an address whose queue of connections is full: to connect there takes for ever."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            client.connect_ex(server.getsockname())
            waiting.append(client)
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            for client in waiting:
                client.close()


async def reset(exchange: Exchange) -> None:
    """Break off before the first byte."""
    exchange.reset()
    raise ConnectionError

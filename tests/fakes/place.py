"""A router between a client and one engine, simulated or told what to do; and what to send."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.metrics import Counter, Gauge
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings, Settings
from kvatlas.indexer.app import Indexer
from kvatlas.router.app import Running, router
from kvatlas.router.endpoint import Endpoint, EngineFacts
from kvatlas.simulator.app import Running as RunningEngine
from kvatlas.simulator.app import engine
from tests.fakes.services import indexing
from tests.fakes.upstream import Behaviour, Upstream, upstream

SIZE = 16
MESSAGES = [
    {"role": "system", "content": "You answer questions about the canals of the old town. " * 8},
    {"role": "user", "content": "Which one is the deepest?"},
]
CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 6}
STREAM = {**CHAT, "stream": True}
KNOWN = EngineFacts((0, 32, 0), "agrees", frozenset(), 4_096)
MADE_UP = re.compile(rb'"(id)":"[^"]*"|"created":\d+')


def settings_for(
    url: str, redis_url: str, events: dict[str, str] | None = None, **options: Any
) -> Settings:
    """Configure a router and an indexer for one engine."""
    handover = options.pop("token_handover", False)
    tokenizer = str(demo_model_path())
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [{"name": "m", "tokenizer": tokenizer, "token_handover": handover}],
            "endpoints": [{"url": url, "model": "m", **(events or {})}],
            "router": {
                "port": 0,
                "admin_port": 0,
                "debug_headers": True,
                "metrics_interval_s": 60,
                **options,
            },
            "indexer": {"admin_port": 0},
        }
    )


@dataclass
class Place:
    """A router, a client of it, and the engine behind it."""

    running: Running
    session: aiohttp.ClientSession
    engine_url: str
    indexer: Indexer | None = None

    @property
    def url(self) -> str:
        """Give where the router serves."""
        return f"http://127.0.0.1:{self.running.port}"

    @property
    def endpoint(self) -> Endpoint:
        """Give the engine as the router sees it."""
        return next(iter(self.running.endpoints.all()))

    async def post(
        self, body: Any, path: str = CHAT_PATH, *, url: str | None = None, status: int = 200
    ) -> bytes:
        """Send a body; give the answer's bytes without what is made up per request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post((url or self.url) + path, data=data) as reply:
            raw = await reply.read()
            assert reply.status == status, raw
        return MADE_UP.sub(b'"made_up":0', raw)

    async def torn(self, body: Any) -> bytes:
        """Send a body whose answer breaks off; give what came before."""
        received: list[bytes] = []
        with pytest.raises(aiohttp.ClientError):
            await self._read_into(received, body)
        return b"".join(received)

    async def _read_into(self, received: list[bytes], body: Any) -> None:
        async with self.session.post(self.url + CHAT_PATH, json=body) as reply:
            while piece := await reply.content.readany():
                received.append(piece)

    async def chat(self, body: Any = None) -> dict[str, Any]:
        """Send a chat; give the answer."""
        answer: dict[str, Any] = json.loads(await self.post(body or CHAT))
        return answer

    async def metrics(self) -> str:
        """Read the page of metrics."""
        url = f"http://127.0.0.1:{self.running.admin_port}/metrics"
        async with self.session.get(url) as reply:
            return await reply.text()

    def count(self, metric: Counter | Gauge, *labels: str) -> float:
        """Read one number."""
        return metric.labels(*labels).value

    async def settled(self) -> None:
        """Wait until Redis knows all that the engine has announced, and nothing is under way.

        Call it after something was announced: an indexer that has heard nothing yet, or has lost
        the first message while it subscribed, has nothing left to write either.
        """
        before = None
        for _ in range(50):
            heard = self._heard()
            if heard is not None and heard == before and not self.endpoint.requests:
                return
            before = heard
            # A message that was lost in the beginning is asked for after SETTLE_S.
            await asyncio.sleep(limits.SETTLE_S + 0.05)
        raise AssertionError("not settled")

    def _heard(self) -> list[int] | None:
        """Give the newest sequence of each feed, if all have heard some and written it."""
        feeds = self.indexer.feeds if self.indexer else []
        seqs = [feed.sequencer.last_seq for feed in feeds if feed.mirror.is_current]
        heard = [seq for seq in seqs if seq is not None]
        return heard if len(heard) == len(feeds) else None


@asynccontextmanager
async def routed(settings: Settings, engine_url: str) -> AsyncIterator[Place]:
    """Run a router that has looked at its engine, and knows it."""
    async with router(settings) as running, aiohttp.ClientSession() as session:
        place = Place(running, session, engine_url)
        for _ in range(200):
            if running.readiness() is None and place.endpoint.block_size:
                break
            await asyncio.sleep(0.01)
        place.endpoint.facts = KNOWN
        yield place


def fast_engine(**options: Any) -> Settings:
    """Configure a simulated engine that is a thousand times faster than a real one."""
    fast = {
        "port": 0,
        "events": "tcp://127.0.0.1:0",
        "replay": "tcp://127.0.0.1:0",
        "block_size": SIZE,
        "time_scale": 1_000.0,
        **options,
    }
    model = {"name": "m", "tokenizer": str(demo_model_path())}
    return Settings.model_validate({"models": [model], "engine": fast})


def sources_of(running: RunningEngine) -> dict[str, str]:
    """Give where a simulated engine's events and replays are, as an endpoint's settings."""
    assert running.sources.events
    assert running.sources.replay
    return {"events": running.sources.events, "replay": running.sources.replay}


@asynccontextmanager
async def simulated(
    redis_url: str, engine_options: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Place]:
    """Run a simulated engine, an indexer and a router."""
    async with engine(fast_engine(**(engine_options or {}))) as real:
        events = sources_of(real)
        settings = settings_for(real.url, redis_url, events, **options)
        async with indexing(settings) as indexer, routed(settings, real.url) as place:
            place.indexer = indexer
            yield place


@asynccontextmanager
async def faked(
    behaviour: Behaviour, redis_url: str, events: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[Upstream, Place]]:
    """Run an engine that does as it is told behind a router."""
    async with upstream(behaviour) as fake:
        url = f"http://127.0.0.1:{fake.port}"
        async with routed(settings_for(url, redis_url, events, **options), url) as place:
            # The probes are over; what comes is the check of a handover.
            fake.has_tokenize = True
            yield fake, place


def events_of(*chunks: dict[str, Any]) -> bytes:
    """Write a stream without its end."""
    return b"".join(
        b"data: " + json.dumps(c, separators=(",", ":")).encode() + b"\n\n" for c in chunks
    )


TEXT = {"id": "1", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
END = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
LAST = {"id": "1", "choices": [], "usage": USAGE, "system_fingerprint": "f"}
DONE = b"data: [DONE]\n\n"


def chat_ids() -> list[int]:
    """Give the token ids of CHAT."""
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(demo_model_path())))
    return list(builder.tokenize(builder.prepare(CHAT_PATH, CHAT)).sequences[0])

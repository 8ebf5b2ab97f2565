"""A router with a Redis, one engine that does as it is told, and a client who writes a canary."""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from redis import Redis

from kvatlas.common.prompt import CHAT_PATH, demo_model_path
from kvatlas.router.app import Running
from tests.fakes.canary import Canary
from tests.fakes.engines import routed, router_settings, until
from tests.fakes.upstream import Behaviour, Upstream, plain, upstream

ANSWER = b'{"id": "x", "object": "chat.completion", "choices": []}'


def model_folder(folder: Path, template: str) -> Path:
    """Make a model folder like the demo's with another template."""
    folder.mkdir(exist_ok=True)
    for file in demo_model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def demo_template(behind: str = "") -> str:
    """Give the demo's template, which is no longer a known one with something behind it."""
    return (demo_model_path() / "chat_template.jinja").read_text(encoding="utf-8") + behind


def chat(*texts: str, **members: Any) -> dict[str, Any]:
    """Write the body of a chat."""
    return {"model": "demo", "messages": [{"role": "user", "content": t} for t in texts], **members}


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request."""

    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float

    @property
    def fallback(self) -> str | None:
        """Say why the request went by load; None if it did not."""
        return self.headers.get("x-kvatlas-fallback")


@dataclass
class Door:
    """A router, its engine, and a client of its public port."""

    running: Running
    client: aiohttp.ClientSession
    engine: Upstream
    canary: Canary

    async def ask(self, body: Any, path: str = CHAT_PATH, **headers: str) -> Seen:
        """Send a body, with the canary in headers of all kinds."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        marked = {"Authorization": f"Bearer {self.canary.text}", "x-secret": self.canary.text}
        sent = {"Content-Type": "application/json", **marked, **headers}
        began = time.monotonic()
        async with self.client.post(path, data=io.BytesIO(data), headers=sent) as reply:
            raw = await reply.read()
            told = {name.lower(): value for name, value in reply.headers.items()}
            return Seen(reply.status, raw, told, time.monotonic() - began)

    def fallbacks(self, reason: str) -> float:
        """Count the requests that went by load since their prompt could not be had."""
        labels = {"stage": "prompt", "reason": reason}
        name = "kvatlas_router_fallbacks_total"
        return self.running.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def door(
    redis_url: str,
    canary: Canary,
    behaviour: Behaviour | None = None,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Door]:
    """Run them until the context ends; then nothing may be under way, nor the canary anywhere."""
    async with upstream(behaviour or plain(ANSWER)) as engine:
        settings = router_settings([f"http://127.0.0.1:{engine.port}"], redis_url, model, **options)
        async with routed(settings) as (running, client):
            made = Door(running, client, engine, canary)
            yield made
            await until(lambda: running.desk.open_requests == 0)
            assert all(each.requests == 0 for each in running.endpoints.all())
            canary.look_at_metrics(running.metrics.registry)
            with Redis.from_url(redis_url) as redis:
                canary.look_into(redis)

"""Simulated engines and a router before them, in a test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from kvatlas.simulator.app import engine

BLOCK_SIZE = 16


def other_tokenizer(folder: Path) -> Path:
    """Make a model folder whose tokenizer splits numbers otherwise than the demo model's."""
    for file in demo_model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["2.0"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@asynccontextmanager
async def simulated(
    *, name: str = "demo", tokenizer: Path | None = None, **changes: Any
) -> AsyncIterator[str]:
    """Run an engine; give its URL."""
    fast = {"port": 0, "events": None, "replay": None, "block_size": BLOCK_SIZE}
    settings = Settings.model_validate({
        "models": [{"name": name, "tokenizer": str(tokenizer or demo_model_path())}],
        "engine": {**fast, "time_scale": 1_000.0, **changes},
    })  # fmt: skip
    async with engine(settings) as running:
        yield running.url


def router_settings(
    urls: list[str], redis_url: str, model: dict[str, Any] | None = None, **options: Any
) -> Settings:
    """Configure a router for engines that serve the demo model."""
    given = {"name": "demo", "tokenizer": str(demo_model_path()), "block_size": BLOCK_SIZE}
    return Settings.model_validate({
        "redis": {"url": redis_url},
        "models": [given | (model or {})],
        "endpoints": [{"url": url, "model": "demo"} for url in urls],
        "router": {
            "port": 0, "admin_port": 0, "debug_headers": True, "metrics_interval_s": 0.05,
            "pre_stop_s": 0, "drain_s": 1, **options,
        },
    })  # fmt: skip


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """Run a router until it is ready, and a client of its public port."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(router(settings))
        client = aiohttp.ClientSession(f"http://127.0.0.1:{running.port}")
        await stack.enter_async_context(client)
        await until(lambda: running.readiness() is None)
        yield running, client


async def until(holds: Callable[[], bool], limit_s: float = 8.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - it is the state of what runs beside
            await asyncio.sleep(0.01)

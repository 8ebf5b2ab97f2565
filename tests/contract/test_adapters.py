"""LoRA adapters are models of their own to clients, and blocks of their own to the index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from kvatlas.cli.main import app
from kvatlas.common import limits
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running
from kvatlas.simulator.app import engine
from tests.contract.test_probe import explained, sample
from tests.fakes.engines import (
    BLOCK_SIZE,
    routed,
    router_settings,
    simulated,
    until,
)
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Which engine holds the longest prefix of this? " * 6}]


def body(model: str) -> dict[str, Any]:
    """Write a request."""
    return {"model": model, "messages": MESSAGES, "max_tokens": 1}


@dataclass
class Scene:
    """Engines, an indexer and a router in this loop."""

    settings: Settings
    running: Running
    client: aiohttp.ClientSession

    async def chat(self, model: str) -> tuple[int, str | None]:
        """Send a request; give status and endpoint."""
        async with self.client.post(CHAT, json=body(model)) as reply:
            await reply.read()
            return reply.status, reply.headers.get("x-kvatlas-endpoint")

    async def matched(self, model: str) -> int:
        """Give the longest match of a request."""
        told = await explained(self.running, body(model))
        assert told["fallback"] is None
        return max(int(candidate["match_blocks"]) for candidate in told["candidates"])

    async def until_matched(self, model: str) -> int:
        """Wait until a request matches."""
        while not (found := await self.matched(model)):
            pass
        return found


@asynccontextmanager
async def scene(
    redis_url: str, loaded: list[list[str]], configured: list[str]
) -> AsyncIterator[Scene]:
    """Run engines that have loaded these adapters."""
    async with AsyncExitStack() as stack:
        engines = []
        base = router_settings([], redis_url, {"lora_adapters": configured})
        for adapters in loaded:
            options = base.engine.model_copy(
                update={
                    "port": 0, "events": "tcp://127.0.0.1:0", "replay": "tcp://127.0.0.1:0",
                    "block_size": BLOCK_SIZE, "time_scale": 1_000.0, "lora_adapters": adapters,
                }
            )  # fmt: skip
            made = await stack.enter_async_context(
                engine(base.model_copy(update={"engine": options}))
            )
            engines.append(
                {
                    "url": made.url,
                    "model": "demo",
                    "events": made.sources.events,
                    "replay": made.sources.replay,
                }
            )
        settings = Settings.model_validate(
            {
                **base.model_dump(exclude={"redis"}),
                "redis": {"url": redis_url},
                "endpoints": engines,
                "indexer": {"admin_port": 0},
            }
        )
        await stack.enter_async_context(indexing(settings))
        running, client = await stack.enter_async_context(routed(settings))
        yield Scene(settings, running, client)


async def test_an_adapter_matches_itself_and_not_the_base(redis_url: str) -> None:
    """Same words, other keys and values: each finds its own blocks only."""
    async with scene(redis_url, [["ad1", "ad2"]], []) as one:
        assert await one.chat("ad1") == (200, one.settings.endpoints[0].host_port)
        assert await one.until_matched("ad1") > 2
        assert await one.matched("demo") == 0
        assert await one.matched("ad2") == 0
        await one.chat("demo")
        assert await one.until_matched("demo") > 2
        told = await explained(one.running, body("ad1"))
        assert (told["model"], told["adapter"]) == ("demo", "ad1")
        admin = f"http://127.0.0.1:{one.running.admin_port}"
        line = ["explain", "--url", admin, "-"]
        shown = await asyncio.to_thread(
            CliRunner().invoke, app, line, input=json.dumps(body("ad1"))
        )
        assert f"demo with ad1: {told['prompt_tokens']} prompt tokens" in shown.stdout
        registry = one.running.metrics.registry
        labels = {"model": "demo", "path": CHAT, "status": "200"}
        assert sample(registry, "requests_total", **labels) == 2


async def test_inspect_knows_adapters(redis_url: str, tmp_path: Path) -> None:
    """Configured ones by their name, others when the model is given."""
    async with scene(redis_url, [["ad1", "ad2"]], ["ad1"]) as one:
        for name in ("ad1", "ad2"):
            await one.chat(name)
            await one.until_matched(name)
        settings = one.settings.model_dump(mode="json", include={"models"})
        config = tmp_path / "kvatlas.yaml"
        config.write_text(yaml.safe_dump({**settings, "redis": {"url": redis_url}}))

    async def inspected(name: str, *more: str) -> Any:
        line = ["inspect", "--config", str(config), "--prompt", "-", "--json", *more]
        text = json.dumps(body(name))
        result = await asyncio.to_thread(CliRunner().invoke, app, line, input=text)
        return result, json.loads(result.stdout) if result.exit_code == 0 else None

    (name,) = {e.host_port for e in one.settings.endpoints}
    assert (await inspected("ad1"))[1]["prompt"]["matches"][name]["blocks"] > 2
    assert (await inspected("ad2", "--model", "demo"))[1]["prompt"]["matches"][name]["blocks"] > 2
    assert (await inspected("ad3", "--model", "demo"))[1]["prompt"]["matches"] == {}
    refused, _ = await inspected("ad2")
    assert refused.exit_code == 78
    assert "give --model" in refused.stderr


async def test_adapters_go_where_they_are_loaded(redis_url: str) -> None:
    """Learned from the engines, merged into the list of models; unknown names are 404."""
    async with (
        simulated(lora_adapters=["x", "both"]) as one,
        simulated(lora_adapters=["both"]) as two,
    ):
        settings = router_settings([one, two], redis_url)
        async with routed(settings) as (running, client):
            for _ in range(4):
                async with client.post(CHAT, json=body("x")) as reply:
                    assert reply.status == 200
                    assert reply.headers["x-kvatlas-endpoint"] == one.removeprefix("http://")
            assert len((await explained(running, body("both")))["candidates"]) == 2
            async with client.get("/v1/models") as reply:
                cards = (await reply.json())["data"]
            assert [(card["id"], card.get("parent")) for card in cards] == [
                ("demo", None), ("both", "demo"), ("x", "demo"),
            ]  # fmt: skip
            async with client.post(CHAT, json=body("y")) as reply:
                assert reply.status == 404


async def test_configured_adapters_work_before_an_engine_has_named_them(redis_url: str) -> None:
    """Every endpoint may have them until it is known which one does."""
    async with simulated() as one, simulated(lora_adapters=["x"]) as two:
        model = {"lora_adapters": ["x", "nowhere"]}
        async with routed(router_settings([one, two], redis_url, model)) as (running, client):
            told = await explained(running, body("x"))
            assert [c["endpoint"] for c in told["candidates"]] == [two.removeprefix("http://")]
            # Nobody lists it, so whoever is asked says so itself.
            assert len((await explained(running, body("nowhere")))["candidates"]) == 2
            async with client.post(CHAT, json=body("nowhere")) as reply:
                assert reply.status == 404
                assert (await reply.json())["error"]["type"] == "NotFoundError"


async def test_adapters_come_while_an_engine_runs(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of models is looked at again."""
    monkeypatch.setattr(limits, "MODELS_REFRESH_S", 0.1)
    loaded: list[str] = []
    async with simulated() as url:
        base = router_settings([url], redis_url)
        async with routed(base) as (running, _):
            names = running.endpoints.names
            assert names.find("late") is None
            monkeypatch.setattr("kvatlas.simulator.answers.model_list", lambda *_: _cards(loaded))
            loaded.append("late")
            await until(lambda: names.find("late") is not None)
            loaded.clear()
            await until(lambda: names.find("late") is None)


def _cards(adapters: list[str]) -> dict[str, Any]:
    cards: list[dict[str, Any]] = [{"id": "demo", "parent": None}]
    return {"data": cards + [{"id": name, "parent": "demo"} for name in adapters]}

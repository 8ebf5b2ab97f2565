"""llm-d's configurations run: engines, Redis, an indexer, a router and a picker made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from kvatlas.cli.llm_d import configure
from kvatlas.common.prompt import CHAT_PATH, demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running
from kvatlas.simulator.app import engine
from tests.fakes.engines import routed, until
from tests.fakes.ext_proc_client import Ask
from tests.fakes.llm_d import EXAMPLE, HERMETIC, STAGES, config
from tests.fakes.picker_place import Pod, picking
from tests.fakes.place import fast_engine, sources_of
from tests.fakes.services import indexing

pytestmark = pytest.mark.usefixtures("patient")

LONG = {"role": "user", "content": "Which canal is the deepest, and who dug it? " * 40}
PORTS = {
    "router": {"port": 0, "admin_port": 0, "debug_headers": True, "pre_stop_s": 0, "drain_s": 2},
    "indexer": {"admin_port": 0},
    "picker": {"port": 0, "health_port": 0, "secure_serving": False},
}
"""What no file of llm-d's tells: ports that are free on this machine."""


def body(number: int = 0) -> dict[str, Any]:
    """Ask something long; each number is another prompt from its beginning on."""
    lead = {"role": "system", "content": f"Answer number {number}. "}
    return {"model": "m", "max_tokens": 2, "messages": [lead, LONG]}


@dataclass
class Place:
    """A router that was made of llm-d's configuration."""

    running: Running
    client: aiohttp.ClientSession
    urls: Sequence[str]

    async def ask(self, number: int = 0, **headers: str) -> tuple[int, str, int]:
        """Send a prompt; give the status, who answered, and how much of it was known there."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post(CHAT_PATH, json=body(number), headers=sent) as answer:
            await answer.read()
            found = answer.headers
            matched = int(found.get("x-kvatlas-match-tokens", 0))
            return answer.status, found.get("x-kvatlas-endpoint", ""), matched


def settings_of(text: str, own: dict[str, Any], folder: Path) -> tuple[Settings, list[str]]:
    """Put llm-d's configuration and a file of ours together; give the warnings, too."""
    file = folder / "kvatlas.yaml"
    model = {"name": "m", "tokenizer": str(demo_model_path())}
    file.write_text(yaml.safe_dump({"models": [model], **PORTS, **own}))
    found = configure(["--config-text", text], file, {})
    return found.settings(), found.warnings


@asynccontextmanager
async def simulated(count: int) -> AsyncIterator[list[dict[str, Any]]]:
    """Run engines; give them as endpoints."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine(fast_engine())) for _ in range(count)]
        yield [{"url": each.url, "model": "m", **sources_of(each)} for each in engines]


@asynccontextmanager
async def placed(settings: Settings) -> AsyncIterator[Place]:
    """Run a router."""
    async with routed(settings) as (running, client):
        yield Place(running, client, [each.host_port for each in settings.endpoints])


async def test_llm_d_s_example_runs(redis_url: str, tmp_path: Path) -> None:
    """Expect a prompt to go back to where its prefix is, by a router and by a picker alike."""
    (tmp_path / "endpoints.yaml").write_text("endpoints: []")
    text = EXAMPLE.replace("MODEL", "m").replace("REDIS", redis_url)
    text = text.replace("FILE", str(tmp_path / "endpoints.yaml"))
    async with simulated(2) as endpoints:
        settings, warnings = settings_of(text, {"endpoints": endpoints}, tmp_path)
        assert settings.redis.url == redis_url
        told = " ".join(warnings)
        assert all(each in told for each in ("flowControl", "disagg-headers-handler", "decider"))
        async with indexing(settings) as indexer, placed(settings) as place:
            firsts = [await place.ask(number) for number in range(4)]
            assert [(status, matched) for status, _, matched in firsts] == [(200, 0)] * 4
            # Cold prompts take turns: never used first, then the least recently used.
            assert {each for _, each, _ in firsts[:2]} == set(place.urls)
            await until(lambda: all(feed.mirror.is_current for feed in indexer.feeds))
            for number, (_, endpoint, _) in enumerate(firsts):
                status, again, matched = await _known(place, number)
                assert (status, again) == (200, endpoint)
                assert matched > 100
            async with picking(settings) as picker:
                for number, (_, endpoint, _) in enumerate(firsts):
                    picked = await picker.pick(Ask.json(body(number), path=CHAT_PATH))
                    assert picked.destination == endpoint


async def _known(place: Place, number: int) -> tuple[int, str, int]:
    """Ask until the engine's events have come through."""
    for _ in range(50):
        found = await place.ask(number)
        if found[2]:
            return found
    return found


@pytest.mark.parametrize(
    ("pods", "chosen"),
    [
        ((Pod(3, 0.2), Pod(0, 0.1), Pod(10, 0.2)), 1),
        ((Pod(0, 0.2, ("a", "b")), Pod(0, 0.1, ("a", "m")), Pod(10, 0.2, ("a", "b"))), 1),
        ((Pod(6, 0.2), Pod(0, 0.85), Pod(10, 0.9)), 0),
    ],
)
async def test_the_configuration_of_the_black_box_tests_decides_as_llm_d(
    redis_url: str, tmp_path: Path, pods: tuple[Pod, ...], chosen: int
) -> None:
    """Expect the endpoint that llm-d's own tests expect, of engines as busy as theirs."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(each.engine().serving()) for each in pods]
        own = {
            "endpoints": [{"url": each.url, "model": "m"} for each in engines],
            "redis": {"url": redis_url},
        }
        settings, _ = settings_of(HERMETIC, own, tmp_path)
        picker = await stack.enter_async_context(picking(settings))
        picked = await picker.pick(Ask.json({"model": "m", "prompt": "test", "max_tokens": 100}))
        assert picker.number_of(picked) == chosen


async def test_of_stages_only_those_that_decode_are_asked(redis_url: str, tmp_path: Path) -> None:
    """Expect requests on the engines that decode, and on those without a role, and no others."""
    roles = ("prefill", "encode", "decode", None)
    async with simulated(len(roles)) as endpoints:
        for each, role in zip(endpoints, roles, strict=True):
            each["labels"] = {"llm-d.ai/role": role} if role else {}
        own = {"endpoints": endpoints, "redis": {"url": redis_url}}
        settings, warnings = settings_of(STAGES, own, tmp_path)
        assert any("'decode' decides" in each for each in warnings)
        async with placed(settings) as place:
            found = {await place.ask(number) for number in range(24)}
            assert {each for _, each, _ in found} == set(place.urls[2:])
            assert {status for status, _, _ in found} == {200}


async def test_a_conformance_test_names_its_endpoint(redis_url: str, tmp_path: Path) -> None:
    """Expect the one in the header, and 503 where it names nobody."""
    text = config("header-based-testing-filter", "random-picker")
    async with simulated(3) as endpoints:
        own = {"endpoints": endpoints, "redis": {"url": redis_url}}
        settings, _ = settings_of(text, own, tmp_path)
        async with placed(settings) as place:
            for url in place.urls:
                found = await place.ask(test_epp_endpoint_selection=f"10.9.9.9, {url}")
                assert found[:2] == (200, url)
            assert (await place.ask(test_epp_endpoint_selection="10.9.9.9"))[0] == 503
            assert (await place.ask())[0] == 503

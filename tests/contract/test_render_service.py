"""What cannot be rendered here is asked from a service that can; its faults cost a match only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings, Settings
from kvatlas.common.tls import TlsGauges
from kvatlas.common.tls_engines import EngineIdentities
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.render_service import RenderServices
from tests.contract.test_probe import explained
from tests.fakes.engines import other_tokenizer, routed, router_settings, simulated
from tests.fakes.upstream import Behaviour, Exchange, plain, upstream

DEMO = ModelName("demo")
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Who holds this block? " * 9}]}


def own_renderer(folder: Path) -> Path:
    """Make a copy of the demo model that claims to be rendered by code of the engine."""
    for file in demo_model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v32"}))
    return folder


def own_ids(path: str, body: dict[str, Any]) -> list[list[int]]:
    """Give the token ids of the plain demo model."""
    builder = PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))
    return [list(ids) for ids in builder.tokenize(builder.prepare(path, body)).sequences]


class Services:
    """The stage for one service, with what it counted."""

    def __init__(self, session: aiohttp.ClientSession, url: str, **options: Any) -> None:
        self.metrics = RouterMetrics()
        model = ModelSettings(name="demo", tokenizer="demo", render_url=url, **options)
        identities = EngineIdentities(Settings(), TlsGauges())
        self.stage = RenderServices([model], session, self.metrics, identities, lambda: self.now)
        self.now = 1_000.0

    async def ids(self, body: dict[str, Any], path: str = CHAT_PATH) -> list[list[int]]:
        """Ask for token ids."""
        prompt = await self.stage.prompt(DEMO, path, body, 1.0)
        return [list(ids) for ids in prompt.sequences]

    async def fault(self, body: dict[str, Any] | None = None, path: str = CHAT_PATH) -> str:
        """Ask, and give the reason why there was no answer."""
        with pytest.raises(PromptUnavailable) as raised:
            await self.stage.prompt(DEMO, path, CHAT if body is None else body, 1.0)
        return raised.value.reason

    def counted(self, outcome: str) -> float:
        """Read how often something came out."""
        labels = {"model": "demo", "outcome": outcome}
        name = "kvatlas_router_renders_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_a_model_with_a_renderer_of_its_own_is_matched_through_the_service(
    redis_url: str, tmp_path: Path
) -> None:
    """The decision has the engine's token ids, and says that they are not our own."""
    async with simulated(render=True) as url:
        model = {"tokenizer": str(own_renderer(tmp_path)), "render_url": url}
        async with routed(router_settings([url], redis_url, model)) as (running, client):
            assert [e.facts.tokenizer for e in running.endpoints.all()] == ["agrees"]
            told = await explained(running, CHAT)
            assert (told["fallback"], told["is_own_prompt"]) == (None, False)
            assert told["prompt_tokens"] == len(own_ids(CHAT_PATH, CHAT)[0])
            async with client.post(CHAT_PATH, json=CHAT) as reply:
                assert reply.headers["x-kvatlas-prompt-tokens"] == str(told["prompt_tokens"])
            texts = {"model": "demo", "prompt": "Who holds it?"}
            assert (await explained(running, texts, COMPLETIONS_PATH))["is_own_prompt"] is True


async def test_without_a_service_it_goes_by_load(redis_url: str, tmp_path: Path) -> None:
    """The reason is our own."""
    async with simulated(render=True) as url:
        model = {"tokenizer": str(own_renderer(tmp_path))}
        async with routed(router_settings([url], redis_url, model)) as (running, _):
            told = await explained(running, CHAT)
            assert told["fallback"] == "prompt:own_renderer"


async def test_an_engine_with_another_tokenizer_is_matched_through_the_service(
    redis_url: str, tmp_path: Path
) -> None:
    """Our own token ids are not believed, the service's are."""
    async with simulated(tokenizer=other_tokenizer(tmp_path), render=True) as url:
        settings = router_settings([url], redis_url, {"render_url": url})
        async with routed(settings) as (running, _):
            body = {**CHAT, "messages": [{"role": "user", "content": "2.0 2.0 2.0"}]}
            told = await explained(running, body)
            assert (told["fallback"], told["is_own_prompt"]) == (None, False)
            assert told["prompt_tokens"] < len(own_ids(CHAT_PATH, body)[0])


@pytest.mark.parametrize("api", ["render", "tokenize"])
async def test_the_answers_are_the_engines(api: str) -> None:
    """Chats, texts and token ids give what the engine itself would see."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}
    chats: list[dict[str, Any]] = [CHAT, {**CHAT, "tools": [tool], "add_generation_prompt": False}]
    text = {"model": "demo", "prompt": "a 2.0 b"}
    async with simulated(render=True) as url, aiohttp.ClientSession() as session:
        services = Services(session, url, render_api=api)
        for body in chats:
            assert await services.ids(body) == own_ids(CHAT_PATH, body)
        assert await services.ids(text, COMPLETIONS_PATH) == own_ids(COMPLETIONS_PATH, text)
        several = {"model": "demo", "prompt": ["one", "two 2.0"]}
        if api == "render":
            found = await services.ids(several, COMPLETIONS_PATH)
            assert found == own_ids(COMPLETIONS_PATH, several)
        else:
            assert await services.fault(several, COMPLETIONS_PATH) == "render_unsupported"


@pytest.mark.parametrize(
    "field",
    [
        {"reasoning_effort": "low"},
        {"documents": [{"text": "x"}]},
        {"truncate_prompt_tokens": 5},
        {"tools": [], "tool_choice": "required"},
    ],
)
async def test_what_tokenize_leaves_out_of_account_goes_by_load(field: dict[str, Any]) -> None:
    """Nothing is asked."""
    async with aiohttp.ClientSession() as session:
        services = Services(session, "http://127.0.0.1:1", render_api="tokenize")
        assert await services.fault({**CHAT, **field}) == "render_unsupported"


async def test_sampling_does_not_spoil_the_cache_and_the_prompt_does() -> None:
    """Equal prompts are asked once; the order of a tool's keys makes another prompt."""
    asked: list[bytes] = []

    async def rendering(exchange: Exchange) -> None:
        asked.append(exchange.body)
        await plain(b'{"token_ids": [1, 2, 3], "features": null}')(exchange)

    async with upstream(rendering) as service, aiohttp.ClientSession() as session:
        services = Services(session, f"http://127.0.0.1:{service.port}")
        for more in ({}, {"stream": True}, {"temperature": 0.3, "max_tokens": 9}, {"seed": 1}):
            assert await services.ids(CHAT | more) == [[1, 2, 3]]
        assert len(asked) == 1
        salted = await services.stage.prompt(DEMO, CHAT_PATH, {**CHAT, "cache_salt": "s"}, 1.0)
        assert (salted.cache_salt, len(asked)) == ("s", 1)
        await services.ids({**CHAT, "tools": [{"a": 1, "b": 2}]})
        await services.ids({**CHAT, "tools": [{"b": 2, "a": 1}]})
        assert len(asked) == 3
        assert json.loads(asked[0]) == CHAT
        services.now += limits.RENDER_CACHE_S + 1
        await services.ids(CHAT)
        assert len(asked) == 4
        assert services.counted("cached") == 4


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In entries and in bytes; what was used last stays."""
    monkeypatch.setattr(limits, "RENDER_CACHE_ENTRIES_MAX", 3)
    async with (
        upstream(plain(b'{"token_ids": [1, 2, 3]}')) as service,
        aiohttp.ClientSession() as session,
    ):
        services = Services(session, f"http://127.0.0.1:{service.port}")
        bodies = [{**CHAT, "documents": [{"n": str(n)}]} for n in range(4)]
        for body in bodies:
            await services.ids(body)
            await services.ids(bodies[0])
        cache = services.stage._cache
        assert (len(cache), cache.bytes) == (3, 36)
        assert services.counted("cached") == 4
        monkeypatch.setattr(limits, "RENDER_CACHE_BYTES_MAX", 24)
        await services.ids(CHAT)
        assert (len(cache), cache.bytes) == (2, 24)


FAULTS: list[tuple[Behaviour, str]] = [
    (plain(b"{}", "403 Forbidden"), "render_status"),
    (plain(b"{}", "500 Oops"), "render_status"),
    (plain(b"{}", "400 Bad"), "render_refused"),
    (plain(b"nonsense"), "render_answer"),
    (plain(b'{"token_ids": []}'), "render_answer"),
    (plain(b'{"token_ids": [true]}'), "render_answer"),
    (plain(b'{"token_ids": [-1]}'), "render_answer"),
    (plain(b'{"token_ids": [4294967296]}'), "render_answer"),
    (plain(b'{"token_ids": [1], "features": {"mm_hashes": {}}}'), "multimodal"),
]


@pytest.mark.parametrize(("behaviour", "reason"), FAULTS)
async def test_every_fault_is_a_reason(behaviour: Behaviour, reason: str) -> None:
    """From a closed set, and counted."""
    async with upstream(behaviour) as service, aiohttp.ClientSession() as session:
        services = Services(session, f"http://127.0.0.1:{service.port}")
        assert await services.fault() == reason
        assert services.counted(reason) == 1


async def test_images_are_not_even_asked_for() -> None:
    """Their identities are not known here."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    body = {**CHAT, "messages": [{"role": "user", "content": [image]}]}
    async with aiohttp.ClientSession() as session:
        assert await Services(session, "http://127.0.0.1:1").fault(body) == "multimodal"


async def test_a_service_that_fails_is_left_alone_for_a_while() -> None:
    """After some failures in a row nothing is sent; then one request tries again."""
    status = "500 Oops"

    async def behave(exchange: Exchange) -> None:
        await plain(b'{"token_ids": [7]}', status)(exchange)

    async with upstream(behave) as service, aiohttp.ClientSession() as session:
        services = Services(session, f"http://127.0.0.1:{service.port}")
        for _ in range(limits.RENDER_FAILURES_MAX):
            assert await services.fault() == "render_status"
        assert await services.fault() == "render_paused"
        assert len(service.requests) == limits.RENDER_FAILURES_MAX
        services.now += limits.RENDER_PAUSE_S
        assert await services.fault() == "render_status"
        assert await services.fault() == "render_paused"
        status = "200 OK"
        services.now += limits.RENDER_PAUSE_S
        assert await services.ids(CHAT) == [[7]]
        assert await services.ids({**CHAT, "documents": []}) == [[7]]


async def test_refusals_do_not_break_it_off_for_others() -> None:
    """A client's bad requests are no failures of the service."""
    async with upstream(plain(b"{}", "400 Bad")) as service, aiohttp.ClientSession() as session:
        services = Services(session, f"http://127.0.0.1:{service.port}")
        for _ in range(3 * limits.RENDER_FAILURES_MAX):
            assert await services.fault() == "render_refused"


async def test_a_slow_or_absent_service_costs_its_deadline_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a crowd does not queue before it."""
    forever = asyncio.Event()

    async def silent(_exchange: Exchange) -> None:
        await forever.wait()

    async with upstream(silent) as service, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{service.port}"
        services = Services(session, url, render_timeout_s=0.05)
        assert await services.fault() == "render_timeout"
        absent = Services(session, "http://127.0.0.1:1")
        assert await absent.fault() == "render_connection"
        monkeypatch.setattr(limits, "RENDERS_AT_ONCE_MAX", 0)
        assert await absent.fault() == "render_busy"
        forever.set()


async def test_an_answer_beyond_the_bound_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to its end."""
    monkeypatch.setattr(limits, "RENDER_ANSWER_BYTES_MAX", 100)
    answer = json.dumps({"token_ids": [1] * 1_000}).encode()
    async with upstream(plain(answer)) as service, aiohttp.ClientSession() as session:
        services = Services(session, f"http://127.0.0.1:{service.port}")
        assert await services.fault() == "render_answer"


async def test_a_dead_service_changes_no_status(redis_url: str, tmp_path: Path) -> None:
    """The request goes by load, and the fallback says why."""
    async with simulated() as url:
        model = {"tokenizer": str(own_renderer(tmp_path)), "render_url": url}
        async with routed(router_settings([url], redis_url, model)) as (running, client):
            assert (await explained(running, CHAT))["fallback"] == "prompt:render_status"
            async with client.post(CHAT_PATH, json=CHAT) as reply:
                assert reply.status == 200

"""Scheduling profiles and sessions on a whole router: what clients see of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from kvatlas.router.app import router
from tests.fakes.upstream import Upstream, plain, upstream

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"id": "x", "choices": [], "usage": null}'
AFFINE = ("session-affinity-filter", "random-picker", "even-scorer")


def profile(*plugins: str | Mapping[str, Any]) -> dict[str, Any]:
    """Write a profile of plugins, each a type or an entry."""
    entries = [{"type": each} if isinstance(each, str) else dict(each) for each in plugins]
    refs = [{"pluginRef": each["type"]} for each in entries]
    return {"plugins": entries, "schedulingProfiles": [{"name": "default", "plugins": refs}]}


@dataclass(frozen=True, slots=True)
class Place:
    """Some engines and routers.

    Attributes:
        clients: one per router; a request goes to it by path.
    """

    engines: list[Upstream]
    clients: list[aiohttp.ClientSession]

    async def ask(self, router: int = 0, **headers: str) -> tuple[int, str, Mapping[str, str]]:
        """Ask a router; gives status, endpoint, and headers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.clients[router].post(CHAT, json=BODY, headers=sent) as answer:
            await answer.read()
            found = answer.headers
            return answer.status, found.get("x-kvatlas-endpoint", ""), found


@asynccontextmanager
async def place(redis_url: str, routers: int = 1, **options: Any) -> AsyncIterator[Place]:
    """Run four engines, labelled a and b in turns, and routers with these options."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(upstream(plain(ANSWER))) for _ in range(4)]
        settings = Settings.model_validate(
            {
                "redis": {"url": redis_url},
                "models": [{"name": "m", "tokenizer": str(demo_model_path())}],
                "endpoints": [
                    {
                        "url": f"http://127.0.0.1:{engine.port}",
                        "model": "m",
                        "labels": {"zone": "ab"[i % 2]},
                    }
                    for i, engine in enumerate(engines)
                ],
                "router": {"port": 0, "admin_port": 0, "debug_headers": True, **options},
            }
        )
        clients = []
        for _ in range(routers):
            running = await stack.enter_async_context(router(settings))
            for _ in range(500):
                if running.readiness() is None:
                    break
                await asyncio.sleep(0.01)
            # A jar would send cookies back by itself.
            client = aiohttp.ClientSession(
                f"http://127.0.0.1:{running.port}", cookie_jar=aiohttp.DummyCookieJar()
            )
            clients.append(await stack.enter_async_context(client))
        yield Place(engines, clients)


async def test_nothing_of_sessions_is_told_unless_it_is_asked_for(redis_url: str) -> None:
    """Expect neither a token nor a cookie by default."""
    async with place(redis_url) as fleet:
        _, _, headers = await fleet.ask(x_session_id="a")
        assert not {"x-session-token", "set-cookie"} & {name.lower() for name in headers}


async def test_a_token_brings_a_conversation_back_through_any_router(redis_url: str) -> None:
    """Expect the endpoint that served it, whichever router gets the token, and no address in it."""
    session = {"header": "x-session-token"}
    async with place(redis_url, 2, profile=profile(*AFFINE), session=session) as fleet:
        _, first, headers = await fleet.ask()
        token = headers["x-session-token"]
        assert first.rpartition(":")[2] not in token
        for turn in range(12):
            status, endpoint, headers = await fleet.ask(turn % 2, x_session_token=token)
            assert (status, endpoint, headers["x-session-token"]) == (200, first, token)
        forged = {(await fleet.ask(x_session_token=first))[1] for _ in range(20)}
        assert len(forged) > 1


async def test_a_cookie_does_the_same(redis_url: str) -> None:
    """Expect the cookie to be set, and to lead back to the endpoint."""
    session = {"cookie": "kvatlas"}
    async with place(redis_url, profile=profile(*AFFINE), session=session) as fleet:
        _, first, headers = await fleet.ask()
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert {(await fleet.ask(cookie=cookie))[1] for _ in range(12)} == {first}


async def test_an_id_is_known_to_all_routers(redis_url: str) -> None:
    """Expect a conversation to stay where the first router sent it, with nothing told to it."""
    session = {"id_headers": ["x-session-id"]}
    async with place(redis_url, 2, profile=profile(*AFFINE), session=session) as fleet:
        for conversation in ("a", "b", "c"):
            _, first, headers = await fleet.ask(0, x_session_id=conversation)
            assert "set-cookie" not in {name.lower() for name in headers}
            found = {(await fleet.ask(i % 2, x_session_id=conversation))[1] for i in range(8)}
            assert found == {first}


async def test_labels_choose_and_refuse(redis_url: str) -> None:
    """Expect requests on one label's engines only, and 503 where no engine has the label."""
    for zone, statuses in (("b", {200}), ("c", {503})):
        selector = {"type": "label-selector-filter", "parameters": {"matchLabels": {"zone": zone}}}
        chosen = profile(selector, "even-scorer", "round-robin-picker")
        async with place(redis_url, profile=chosen) as fleet:
            assert {(await fleet.ask())[0] for _ in range(8)} == statuses
            served = [len(engine.requests) for engine in fleet.engines]
            assert served == ([0, 4, 0, 4] if zone == "b" else [0] * 4)


async def test_who_a_hard_filter_leaves_out_is_no_fallback(redis_url: str) -> None:
    """Expect the other of the label's engines when one is gone, and an error when both are."""
    selector = {"type": "label-selector-filter", "parameters": {"matchLabels": {"zone": "b"}}}
    chosen = profile(selector, "even-scorer", "round-robin-picker")

    async def gone(exchange: Any) -> None:
        exchange.reset()

    async with place(redis_url, profile=chosen) as fleet:
        fleet.engines[1].behaviour = gone
        assert {(await fleet.ask())[0] for _ in range(6)} == {200}
        fleet.engines[3].behaviour = gone
        assert {(await fleet.ask())[0] for _ in range(6)} == {502}
        assert [len(fleet.engines[i].requests) for i in (0, 2)] == [0, 0]

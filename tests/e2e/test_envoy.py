"""Clients, a real Envoy with the configuration that we ship, the picker, simulated engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from deploy.local_envoy import Config, cluster, full_duplex
from kvatlas.common.settings import Settings
from kvatlas.router.app import router
from kvatlas.router.ext_proc import NO_CHANGE, changed, read
from kvatlas.router.picker_app import Running as RunningPicker
from kvatlas.router.picker_app import picker
from kvatlas.simulator.app import Running as RunningEngine
from kvatlas.simulator.app import engine
from tests.fakes.envoy import Envoy, envoy
from tests.fakes.picker_place import MODEL, picker_settings
from tests.fakes.place import fast_engine, sources_of
from tests.fakes.services import indexing
from tests.fakes.upstream import plain, upstream

CHAT = "/v1/chat/completions"
TEXTS = [f"Tell me of the canal of number {n}, its locks and its bridges. " * 20 for n in range(6)]
EDITS: dict[str, tuple[Callable[[Config], None], ...]] = {
    "buffered": (),
    "full duplex": (full_duplex,),
}


def fail_open(config: Config) -> None:
    """Spread requests over all engines while no picker answers."""
    config["layered_runtime"]["layers"][0]["static_layer"]["kvatlas.fail_open"] = 100


def chat(text: str, **more: Any) -> dict[str, Any]:
    """Write a chat."""
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": 4, **more}


async def ready(why_not: Callable[[], str | None]) -> None:
    """Wait until a service is ready."""
    for _ in range(500):
        if why_not() is None:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(why_not())


@dataclass
class Gateway:
    """All of it.

    Attributes:
        settings: of the picker; a router that is made of them knows the same.
        running: the picker, as long as it does.
        first_engine: ends with what is in it.
        picker: alike.
    """

    envoy: Envoy
    session: aiohttp.ClientSession
    engines: list[RunningEngine]
    settings: Settings
    running: RunningPicker
    first_engine: AsyncExitStack
    picker: AsyncExitStack

    async def chat(self, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
        """Send a request; give the answer."""
        async with self.session.post(self.envoy.url + path, json=body) as reply:
            assert reply.status == 200, await reply.text()
            answer: dict[str, Any] = await reply.json()
            return answer

    async def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a request that is streamed; give the events."""
        url = self.envoy.url + CHAT
        async with self.session.post(url, json={**body, "stream": True}) as reply:
            assert reply.status == 200, await reply.text()
            lines = [line async for line in reply.content if line.startswith(b"data: {")]
        return [json.loads(line[6:]) for line in lines]


@asynccontextmanager
async def gateway(
    redis_url: str, folder: Path, *edits: Callable[[Config], None], **sections: Any
) -> AsyncIterator[Gateway]:
    """Run three engines, an indexer, a picker with TLS, and Envoy."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        engines = [
            await each.enter_async_context(engine(fast_engine())) for each in (first, stack, stack)
        ]
        plain_settings = picker_settings([each.url for each in engines], redis_url, **sections)
        content = plain_settings.model_dump(exclude_unset=True)
        for entry, running in zip(content["endpoints"], engines, strict=True):
            entry.update(sources_of(running))
        content["picker"]["secure_serving"] = True
        settings = Settings.model_validate(content)
        await stack.enter_async_context(indexing(settings))
        own = await stack.enter_async_context(AsyncExitStack())
        running_picker = await own.enter_async_context(picker(settings))
        await ready(running_picker.readiness)
        # On the same port when it comes back.
        options = settings.picker.model_copy(update={"port": running_picker.port})
        settings = settings.model_copy(update={"picker": options})
        ports = [int(each.url.rpartition(":")[2]) for each in engines]
        before = await stack.enter_async_context(
            envoy(folder, [running_picker.port], ports, *edits)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Gateway(before, session, engines, settings, running_picker, first, own)


async def warm(place: Gateway) -> None:
    """Have each engine hold two of the texts, and wait until the index tells of all."""
    for number, text in enumerate(TEXTS):
        url = place.engines[number % len(place.engines)].url + CHAT
        async with place.session.post(url, json=chat(text)) as reply:
            assert reply.status == 200
    await asyncio.sleep(1.0)


def cached(answer: dict[str, Any]) -> int:
    """Tell how many tokens an engine found in its cache."""
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
async def test_requests_go_where_their_prefix_is(
    redis_url: str, tmp_path: Path, edits: tuple[Callable[[Config], None], ...]
) -> None:
    """As the proxy decides: each prompt is found cached, chats and completions, streamed or not."""
    async with gateway(redis_url, tmp_path, *edits) as place:
        await warm(place)
        async with router(place.settings) as proxy:
            await ready(proxy.readiness)
            for number, text in enumerate(TEXTS):
                asked = {"path": CHAT, "body": chat(text)}
                told = await proxy.desk.explain(json.dumps(asked).encode(), None)
                url = place.engines[number % len(place.engines)].url
                assert told["endpoint"] == url.removeprefix("http://")
                through_proxy = f"http://127.0.0.1:{proxy.port}{CHAT}"
                async with place.session.post(through_proxy, json=chat(text)) as reply:
                    by_proxy = cached(await reply.json())
                by_picker = cached(await place.chat(chat(text)))
                assert by_picker == by_proxy > 100
        events = await place.stream(chat(TEXTS[0], stream_options={"include_usage": True}))
        assert cached(events[-1]) > 100
        completion = {"model": MODEL, "prompt": TEXTS[1], "max_tokens": 2}
        first = await place.chat(completion, "/v1/completions")
        again = await place.chat(completion, "/v1/completions")
        assert cached(again) >= cached(first)
        long = await place.chat(chat("a long tale " * 4_000))
        assert long["usage"]["prompt_tokens"] > 4_000


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
async def test_errors_reach_the_client(
    redis_url: str, tmp_path: Path, edits: tuple[Callable[[Config], None], ...]
) -> None:
    """What is no request is 400; what engines refuse is theirs; paths beside the API are 404."""
    async with gateway(redis_url, tmp_path, *edits) as place:
        url = place.envoy.url
        cases = [
            (CHAT, b"no healthy upstream", 400, "inference error: BadRequest"),
            (CHAT, b'{"messages": []}', 400, "model not found in request body"),
            (CHAT, json.dumps(chat("x", model="nobody")).encode(), 404, "does not exist"),
            ("/v1/nothing", b"{}", 400, "unsupported path"),
            ("/reset_prefix_cache", b"{}", 404, "nothing at this path"),
        ]
        for path, body, status, text in cases:
            async with place.session.post(url + path, data=body) as reply:
                answer = await reply.text()
                assert (reply.status, text in answer) == (status, True), answer
        async with place.session.get(url + "/v1/models") as reply:
            assert (await reply.json())["data"][0]["id"] == MODEL


async def test_answers_name_the_model_as_clients_do(redis_url: str, tmp_path: Path) -> None:
    """The picker has Envoy send it those bodies, and no others."""
    async with gateway(redis_url, tmp_path, model={"aliases": ["nick"]}) as place:
        for name in ("nick", MODEL):
            assert (await place.chat(chat("hello", model=name)))["model"] == name
            events = await place.stream(chat("hello", model=name))
            assert {each["model"] for each in events} == {name}


async def test_tokens_are_handed_over(redis_url: str, tmp_path: Path) -> None:
    """Where that is switched on the body is rewritten, and the engine computes our tokens."""
    async with gateway(redis_url, tmp_path, model={"token_handover": True}) as place:
        first = await place.chat(chat(TEXTS[0]))
        assert first["usage"]["prompt_tokens"] > 100
        again = await place.chat(chat(TEXTS[0]))
        assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
        handed = place.running.service.metrics.handovers.labels(MODEL, "handed_over")
        assert handed.value == 2


async def refused_by(place: Gateway, status: int) -> str:
    """Wait until requests are answered with a status; give the text."""
    for _ in range(100):
        async with place.session.post(place.envoy.url + CHAT, json=chat("hello")) as reply:
            if reply.status == status:
                return await reply.text()
        await asyncio.sleep(0.05)
    raise AssertionError(reply.status)


async def test_without_a_picker_requests_fail_and_come_back(redis_url: str, tmp_path: Path) -> None:
    """Closed: 503 in words of our own, and no forged header opens it; then all is as before."""
    async with gateway(redis_url, tmp_path) as place, upstream(plain(b"{}")) as stranger:
        await place.chat(chat("hello"))
        await place.picker.aclose()
        assert "no picker is there" in await refused_by(place, 503)
        forged = {"X-Gateway-Destination-Endpoint": f"127.0.0.1:{stranger.port}"}
        url = place.envoy.url + CHAT
        async with place.session.post(url, json=chat("hello"), headers=forged) as reply:
            assert reply.status == 503
        async with picker(place.settings) as back:
            # Until then it tells health checks that it is not.
            await ready(back.readiness)
            assert await refused_by(place, 200)
            async with place.session.post(url, json=chat("hello"), headers=forged) as reply:
                assert reply.status == 200
        assert not stranger.requests


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
async def test_without_a_picker_requests_may_go_anywhere(
    redis_url: str, tmp_path: Path, edits: tuple[Callable[[Config], None], ...]
) -> None:
    """Open: engines are taken in turns; a forged header still chooses no address."""
    async with (
        gateway(redis_url, tmp_path, fail_open, *edits) as place,
        upstream(plain(b"{}")) as stranger,
    ):
        await place.picker.aclose()
        await refused_by(place, 200)
        forged = {"X-Gateway-Destination-Endpoint": f"127.0.0.1:{stranger.port}"}
        for _ in range(12):
            url = place.envoy.url + CHAT
            async with place.session.post(url, json=chat("hello"), headers=forged) as reply:
                assert reply.status == 200
        assert not stranger.requests


async def test_an_engine_that_dies_costs_nothing_with_a_list(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its connections are refused: Envoy goes down the list; the picker hears who served."""
    sections = {"picker": {"destinations": 3}, "router": {"metrics_interval_s": 60}}
    async with gateway(redis_url, tmp_path, **sections) as place:
        await warm(place)
        await place.chat(chat(TEXTS[0]))
        await place.first_engine.aclose()
        for _ in range(4):
            answer = await place.chat(chat(TEXTS[0]))
            assert answer["usage"]["prompt_tokens"] > 100
        assert await place.envoy.stat(place.session, "cluster.engines.upstream_rq_retry") > 0
        told = capsys.readouterr().out
        first, *others = (each.url.removeprefix("http://") for each in place.engines)
        assert any("retries=1" in line and f"endpoint={other}" in line
                   for line in told.splitlines() for other in others), first  # fmt: skip


async def test_clients_that_leave_free_their_requests(redis_url: str, tmp_path: Path) -> None:
    """In the middle of a stream; the picker counts nothing any more soon after."""
    async with gateway(redis_url, tmp_path) as place:
        slow = chat("hello", stream=True, max_tokens=4_000)
        for _ in range(3):
            async with place.session.post(place.envoy.url + CHAT, json=slow) as reply:
                await reply.content.readany()
                reply.close()
        await place.chat(chat("hello"))
        for _ in range(100):
            async with place.session.get(
                f"{place.envoy.admin_url}/stats?filter=rq_active"
            ) as reply:
                text = await reply.text()
            if "cluster.picker.upstream_rq_active: 0" in text:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(text)


class _Dying(grpc.GenericRpcHandler):
    """A picker that is well, and dies of every request whose body it has seen."""

    def service(self, handler_call_details: Any) -> Any:
        """Answer health checks, and exchanges."""
        if handler_call_details.method.endswith("/Check"):
            return grpc.unary_unary_rpc_method_handler(self._check)
        return grpc.stream_stream_rpc_method_handler(self._process)

    async def _check(self, _asked: bytes, _context: Any) -> bytes:
        return b"\x08\x01"

    async def _process(self, messages: Any, context: Any) -> None:
        async for message in messages:
            if read(message).part == "request_headers":
                await context.write(changed("request_headers", NO_CHANGE))
            else:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "died")


@pytest.mark.parametrize(("edits", "status"), [((), 200), ((full_duplex,), 500)], ids=EDITS)
async def test_a_picker_that_dies_in_the_middle(
    redis_url: str, tmp_path: Path, edits: tuple[Callable[[Config], None], ...], status: int
) -> None:
    """With bodies that Envoy holds the request goes on as without a picker; else it is lost."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Dying(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def dying(config: Config) -> None:
        del cluster(config, "picker")["transport_socket"]
        endpoints = cluster(config, "picker")["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoints[0]["endpoint"]["address"]["socket_address"]["port_value"] = port

    try:
        async with gateway(redis_url, tmp_path, fail_open, dying, *edits) as place:
            url = place.envoy.url + CHAT
            async with place.session.post(url, json=chat("hello")) as reply:
                assert reply.status == status
    finally:
        await server.stop(0)

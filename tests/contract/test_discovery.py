"""Endpoints come and go while a router serves: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.settings import Settings
from kvatlas.router.app import Running, router
from kvatlas.router.endpoint import Endpoint, Engine
from kvatlas.router.flights import Stand
from tests.contract.test_reload import Stream, changed
from tests.fakes.engines import simulated, until
from tests.fakes.found import FoundFile
from tests.fakes.upstream import plain, upstream

CHATS = "/v1/chat/completions"
CHAT = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and see off soon."""
    monkeypatch.setattr(limits, "DISCOVERY_FILE_LOOK_S", 0.01)
    monkeypatch.setattr(limits, "DISCOVERY_GATHER_S", 0.005)
    monkeypatch.setattr(limits, "DISCOVERY_RETRY_S", 0.02)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.1)


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    """Run a router until it is ready, and a client of it."""
    async with (
        router(settings) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
    ):
        await until(lambda: running.readiness() is None)
        yield running, client


def names(running: Running) -> list[str]:
    """List who is there."""
    return [each.name for each in running.endpoints.all()]


def measured(running: Running) -> set[str]:
    """List the endpoints that metrics tell of."""
    samples = (sample for family in running.metrics.collect() for sample in family.samples)
    return {each.labels["endpoint"] for each in samples if "endpoint" in each.labels}


async def ask(client: aiohttp.ClientSession, **more: Any) -> tuple[int, str]:
    """Send a chat; give its status and who answered."""
    async with client.post(CHATS, json=CHAT | more) as reply:
        await reply.read()
        return reply.status, reply.headers.get("x-kvatlas-endpoint", "")


# --- who is there -------------------------------------------------------------------------------


async def test_a_router_waits_for_what_is_to_be_found(redis_url: str, tmp_path: Path) -> None:
    """Not ready before the place has told, but for so long only; an empty list is an answer."""
    file = FoundFile(tmp_path / "later.yaml")
    settings = file.settings(redis_url, probe_wait_s=60)
    async with router(settings) as running:
        for _ in range(20):
            assert running.readiness() == "discovery has not told its endpoints yet"
            await asyncio.sleep(0.01)
        file.write()
        await until(lambda: running.readiness() is None)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
            client.post(CHATS, json=CHAT) as reply,
        ):
            assert reply.status == 503
            assert (await reply.json())["error"]["code"] == "no_endpoints"
    never = FoundFile(tmp_path / "never.yaml").settings(redis_url, probe_wait_s=0.2)
    async with router(never) as running:
        assert running.readiness() is not None
        await until(lambda: running.readiness() is None)


async def test_what_was_ready_stays_so_when_somebody_joins(
    redis_url: str, found: FoundFile
) -> None:
    """Whoever has not been looked at yet makes a router that serves no worse."""
    async with upstream(plain(b"{}")) as one, upstream(plain(b"{}")) as hanging:
        hanging.hangs = True
        found.add(f"http://127.0.0.1:{one.port}")
        async with routed(found.settings(redis_url)) as (running, client):
            found.add(f"http://127.0.0.1:{hanging.port}")
            await until(lambda: len(names(running)) == 2)
            assert running.readiness() is None
            assert (await ask(client))[0] == 200


async def test_several_models_are_told_apart_by_asking(redis_url: str, found: FoundFile) -> None:
    """An engine belongs to the model that it lists, once it has answered; one of none to none."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(simulated(name=name)) for name in ("a", "b", "c")]
        for url in urls:
            found.add(url)
        settings = found.settings(redis_url, "a", "b")
        running, client = await stack.enter_async_context(routed(settings))
        hosts = [url.removeprefix("http://") for url in urls]
        await until(lambda: sorted(names(running)) == sorted(hosts[:2]))
        assert await ask(client, model="a") == (200, hosts[0])
        assert await ask(client, model="b") == (200, hosts[1])
        left_out = running.metrics.discovery_left_out.labels("other_model")
        await until(lambda: left_out.value == 1)


async def test_labels_change_without_a_new_life(redis_url: str, found: FoundFile) -> None:
    """What is known of the endpoint stays; of one with other ranks nothing does."""
    async with upstream(plain(b"{}")) as engine:
        url = f"http://127.0.0.1:{engine.port}"
        found.add(url)
        async with routed(found.settings(redis_url)) as (running, _):
            (before,) = running.endpoints.all()
            found.add(url, labels={"zone": "a"})
            await until(lambda: before.labels == {"zone": "a"})
            assert list(running.endpoints.all()) == [before]
            found.add(url, labels={"zone": "a"}, data_parallel_size=2)
            await until(lambda: len(names(running)) == 2)
            assert before.is_gone
            assert names(running) == [before.name, f"{before.name}#1"]


async def test_a_new_core_starts_with_what_is_known(redis_url: str, found: FoundFile) -> None:
    """And who goes afterwards is gone from both of them."""
    stream = Stream()
    async with upstream(stream) as one, upstream(plain(b"{}")) as other:
        found.add(f"http://127.0.0.1:{one.port}")
        settings = found.settings(redis_url)
        async with routed(settings) as (running, client):
            before = running.core
            async with client.post(CHATS, json=CHAT | {"stream": True}) as reply:
                await stream.has_begun.wait()
                replacing = running.cores.replace(changed(settings, router={"debug_headers": True}))
                await replacing
                assert running.core is not before
                assert names(running) == [f"127.0.0.1:{one.port}"]
                found.add(f"http://127.0.0.1:{other.port}")
                found.remove(f"http://127.0.0.1:{one.port}")
                there = [f"127.0.0.1:{other.port}"]
                for core in (before, running.core):
                    await until(
                        lambda core=core: [e.name for e in core.endpoints.all()] == there  # type: ignore[misc]
                    )
                stream.may_end.set()
                assert (await reply.read()).endswith(b"data: [DONE]\n\n")
            await until(lambda: running.cores.living == 1)
            await until(lambda: measured(running) == set(there))


# --- requests while they come and go ------------------------------------------------------------


async def test_a_stream_to_one_that_is_gone_ends_whole(redis_url: str, found: FoundFile) -> None:
    """New requests go elsewhere at once; it is forgotten when its last answer has ended."""
    stream = Stream()
    async with upstream(stream) as old, upstream(plain(b"{}")) as new:
        names_of = [f"127.0.0.1:{each.port}" for each in (old, new)]
        found.add(f"http://{names_of[0]}")
        async with routed(found.settings(redis_url)) as (running, client):
            (gone,) = running.endpoints.all()
            async with client.post(CHATS, json=CHAT | {"stream": True}) as reply:
                await stream.has_begun.wait()
                found.add(f"http://{names_of[1]}")
                found.remove(f"http://{names_of[0]}")
                await until(lambda: names(running) == names_of[1:])
                for _ in range(5):
                    assert await ask(client) == (200, names_of[1])
                await asyncio.sleep(3 * limits.FAREWELL_S)
                assert gone.requests == 1
                assert measured(running) == set(names_of)
                stream.may_end.set()
                assert (await reply.read()).endswith(b"data: [DONE]\n\n")
            await until(lambda: measured(running) == set(names_of[1:]))
            assert gone.requests == 0


async def test_no_request_is_lost_while_engines_come_and_go(
    redis_url: str, found: FoundFile
) -> None:
    """Engines that leave the list before they stop, as pods do; streams and whole answers."""
    answers: Counter[int] = Counter()
    served: set[str] = set()
    is_over = asyncio.Event()

    async def chat(client: aiohttp.ClientSession, number: int) -> None:
        while not is_over.is_set():
            text = f"{number} {sum(answers.values())}"
            body = CHAT | {"messages": [{"role": "user", "content": text}]}
            async with client.post(CHATS, json=body | {"stream": bool(number % 2)}) as reply:
                content = await reply.read()
                assert number % 2 == 0 or content.endswith(b"data: [DONE]\n\n")
                answers[reply.status] += 1
                served.add(reply.headers["x-kvatlas-endpoint"])

    async with simulated() as stays:
        found.add(stays)
        settings = found.settings(redis_url, policy="round-robin")
        async with routed(settings) as (running, client), asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(chat(client, number))
            for _ in range(6):
                async with simulated() as comes:
                    name = comes.removeprefix("http://")
                    found.add(comes)
                    await until(lambda name=name: name in served)  # type: ignore[misc]
                    endpoint = next(e for e in running.endpoints.all() if e.name == name)
                    found.remove(comes)
                    await until(lambda one=endpoint: one.is_gone and not one.requests)  # type: ignore[misc]
            is_over.set()
    assert set(answers) == {200}
    assert len(served) == 7


async def test_an_engine_that_dies_before_it_leaves_costs_nobody_anything(
    redis_url: str, found: FoundFile
) -> None:
    """Its requests go to another one, and those to come, too, when the list has heard of it."""
    async with simulated() as stays, routed(found.settings(redis_url)) as (running, client):
        async with simulated() as dies:
            found.add(stays)
            found.add(dies)
            await until(lambda: len(names(running)) == 2)
        assert [(await ask(client))[0] for _ in range(6)] == [200] * 6
        found.remove(dies)
        await until(lambda: len(names(running)) == 1)
        assert [(await ask(client))[0] for _ in range(6)] == [200] * 6


# --- what is left behind ------------------------------------------------------------------------


def living(kind: type) -> int:
    """Count the objects of a class that anybody still holds."""
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_nothing_is_left_of_fifty_that_came_and_went(
    redis_url: str, found: FoundFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No endpoint, engine, stand, task, connection, or metric; by new names and by old ones."""
    monkeypatch.setattr(limits, "UPSTREAM_KEEPALIVE_S", 0.2)
    monkeypatch.setattr(limits, "ROUTER_STATE_S", 0.1)
    settings = found.settings(redis_url, policy="round-robin", idle_probe_s=0.05)
    async with upstream(plain(b"{}")) as stays:
        found.add(f"http://127.0.0.1:{stays.port}")
        async with routed(settings) as (running, client):
            await ask(client)
            before = [living(kind) for kind in (Endpoint, Engine, Stand)]
            tasks = len(asyncio.all_tasks())
            port = 0
            for cycle in range(50):
                # Every other one comes back under the name of the one before it.
                async with upstream(plain(b"{}"), port if cycle % 2 else 0) as comes:
                    port = comes.port
                    found.add(f"http://127.0.0.1:{port}")
                    await until(lambda: len(names(running)) == 2)
                    assert [(await ask(client))[0] for _ in range(2)] == [200] * 2
                    found.remove(f"http://127.0.0.1:{port}")
                    await until(lambda: len(names(running)) == 1)
            await until(lambda: measured(running) == {f"127.0.0.1:{stays.port}"})
            await until(lambda: len(asyncio.all_tasks()) <= tasks + 1)
            await until(lambda: len(running.pool._all) <= 1)
            await until(lambda: [living(k) for k in (Endpoint, Engine, Stand)] == before)

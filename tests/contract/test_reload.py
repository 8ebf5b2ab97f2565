"""A configuration that changes loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings
from kvatlas.router.app import router
from kvatlas.router.cores import Reload
from tests.contract.test_proxy import routed, settings_for
from tests.fakes.engines import until
from tests.fakes.router_process import RouterProcess, plain_settings, router_processes
from tests.fakes.upstream import Exchange, plain, upstream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def changed(settings: Settings, **changes: Any) -> Settings:
    """Give settings with other models, endpoints, or parts of the router's."""
    content = settings.model_dump(mode="json", exclude_defaults=True)
    content["router"] |= changes.pop("router", {})
    return Settings.model_validate(content | changes)


class Stream:
    """An engine's stream that goes on when it is told to."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Answer."""
        await exchange.send(HEAD)
        await exchange.chunk(b'data: {"a":1}\n\n')
        self.has_begun.set()
        await self.may_end.wait()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.send(b"0\r\n\r\n")


async def test_a_stream_goes_on_while_the_configuration_changes(redis_url: str) -> None:
    """New requests go by the new one at once; the former core ends with its last request."""
    stream = Stream()
    async with upstream(stream) as old, upstream(plain(b'{"new":1}')) as new:
        settings = settings_for([old.port], redis_url, probe_wait_s=0.2)
        async with routed(settings) as (running, client):
            before = running.core
            async with client.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
                await stream.has_begun.wait()
                await running.cores.replace(settings_for([new.port], redis_url, probe_wait_s=0.2))
                async with client.post("/v1/chat/completions", json=CHAT) as other:
                    assert await other.json() == {"new": 1}
                assert running.core is not before
                assert running.cores.living == 2
                stream.may_end.set()
                assert (await reply.read()).endswith(b"data: [DONE]\n\n")
            await until(lambda: running.cores.living == 1)
            page = [
                sample.labels for family in running.metrics.collect() for sample in family.samples
            ]
            named = {labels["endpoint"] for labels in page if "endpoint" in labels}
            assert named == {f"127.0.0.1:{new.port}"}


async def test_what_cannot_be_used_changes_nothing(redis_url: str, tmp_path: Path) -> None:
    """A file of keys that is not there: the former configuration stays, and it is told."""
    async with upstream(plain(b"{}")) as engine:
        settings = settings_for([engine.port], redis_url)
        async with routed(settings) as (running, client):
            before = running.core
            bad = changed(settings, router={"api_keys_file": str(tmp_path / "none")})
            with pytest.raises(ConfigError, match="api_keys_file"):
                await running.cores.replace(bad)
            assert running.core is before
            assert running.cores.living == 1
            async with client.post("/v1/chat/completions", json=CHAT) as reply:
                assert reply.status == 200


@contextlib.asynccontextmanager
async def reloading(settings: Settings, reload: Reload) -> AsyncIterator[Any]:
    """Run a router that reads its configuration again."""
    async with (
        router(settings, reload) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.port}") as client,
    ):
        await until(lambda: running.readiness() is None)
        yield running, client


async def test_it_is_told_whether_the_file_can_be_used(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a metric, until it can be again."""
    monkeypatch.setattr(limits, "CONFIG_LOOK_S", 0.02)
    async with upstream(plain(b"{}")) as engine:
        settings = settings_for([engine.port], redis_url)
        given: list[Settings | ConfigError] = []

        def reload(_is_asked: bool) -> Settings | None:  # noqa: FBT001 - as it is called
            found = given.pop() if given else None
            if isinstance(found, ConfigError):
                raise found
            return found

        async with reloading(settings, reload) as (running, client):
            good = running.metrics.config_good.labels()
            assert good.value == 1
            given.append(ConfigError(["models: none"]))
            await until(lambda: good.value == 0)
            given.append(
                changed(
                    settings,
                    models=[
                        settings.models[0].model_dump(mode="json", exclude_defaults=True)
                        | {"aliases": ["another"]}
                    ],
                )
            )
            await until(lambda: good.value == 1)
            async with client.post(
                "/v1/chat/completions", json=CHAT | {"model": "another"}
            ) as reply:
                assert reply.status == 200


async def test_only_so_many_configurations_live_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next change waits until one has no request left."""
    monkeypatch.setattr(limits, "CORES_MAX", 2)
    stream = Stream()
    async with upstream(stream) as engine:
        settings = settings_for([engine.port], redis_url, probe_wait_s=0.1)
        async with routed(settings) as (running, client):
            async with client.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
                await stream.has_begun.wait()
                await running.cores.replace(settings)
                third = asyncio.create_task(running.cores.replace(settings))
                await asyncio.sleep(0.3)
                assert not third.done()
                assert running.cores.living == 2
                stream.may_end.set()
                await reply.read()
            await asyncio.wait_for(third, 5)
            await until(lambda: running.cores.living == 1)


async def load(router_process: RouterProcess, stop: asyncio.Event, statuses: list[int]) -> None:
    """Send one request after the other; note how each ended."""
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            url = f"{router_process.url}/v1/chat/completions"
            async with session.post(url, json=CHAT) as reply:
                await reply.read()
                statuses.append(reply.status)


async def test_a_process_follows_its_file_and_sighup_under_load(
    redis_url: str, tmp_path: Path
) -> None:
    """No request fails; a file that is broken is told of, and changes nothing."""
    async with upstream(plain(b'{"a":1}')) as one, upstream(plain(b'{"a":2}')) as two:
        settings = settings_for([one.port], redis_url, probe_wait_s=0.5)
        with router_processes(tmp_path, settings) as (process,):
            await process.ready()
            stop, statuses = asyncio.Event(), list[int]()
            loads = [asyncio.create_task(load(process, stop, statuses)) for _ in range(4)]
            both = settings_for([two.port], redis_url, probe_wait_s=0.5)
            process.write(both)
            await until(lambda: len(process.events("config.changed")) == 1)
            process.config.write_text("router: [")
            await until(lambda: bool(process.events("config.refused")))
            process.write(plain_settings(both) | {"log": {"level": "warning"}})
            await until(lambda: bool(process.events("config.needs_restart")))
            process.signal(signal.SIGHUP)
            await until(lambda: len(process.events("config.changed")) == 3)
            stop.set()
            await asyncio.gather(*loads)
            assert set(statuses) == {200}
            assert len(statuses) > 50
            assert json.loads(two.requests[-1].body) == CHAT
            assert process.events("config.needs_restart")[0]["settings"] == ["log"]

"""Gauges are read once per fleet and shared; routers look themselves where nothing is shared."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from kvatlas.common import limits
from kvatlas.common.gauge_board import GaugeReader
from kvatlas.common.gauges import EngineGauges, Sample, SharedSample
from kvatlas.common.ids import EndpointName, ModelName
from kvatlas.common.keyspace import LoadKeys, Shard
from kvatlas.common.prompt import demo_model_path
from kvatlas.common.redis_client import connect
from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.indexer.gauge_writer import GaugeWriter, Seen
from kvatlas.indexer.own_gauges import OwnGauges
from kvatlas.router.app import Running, router
from kvatlas.router.endpoint import Endpoint
from tests.fakes.engines import until
from tests.fakes.gauged_engine import GaugedEngine
from tests.fakes.indexer_process import indexer_processes
from tests.fakes.publisher import FakePublisher
from tests.fakes.redis_servers import Server, plain_options, running
from tests.fakes.services import indexing

MODEL = ModelName("demo")
KEYS = LoadKeys(MODEL)
LEASE_S = 0.5
WINDOW_S = 1.0


def settings_for(redis_url: str, endpoints: list[dict[str, Any]], **router: Any) -> Settings:
    """Configure everything."""
    return Settings.model_validate({
        "redis": {"url": redis_url},
        "models": [{"name": MODEL, "tokenizer": str(demo_model_path())}],
        "endpoints": [{"model": MODEL, **each} for each in endpoints],
        "router": {"port": 0, "admin_port": 0, "metrics_interval_s": 0.1, "drain_s": 1, **router},
        "indexer": {"admin_port": 0, "lease_s": LEASE_S, "metrics_interval_s": 0.1},
    })  # fmt: skip


@dataclass
class Place:
    """Engines, a Redis, indexers and routers.

    Attributes:
        server: the Redis, to be frozen or killed.
        looked_first: looks of routers while others were begun in the same loop, which stalls it.
    """

    engines: list[GaugedEngine]
    server: Server
    settings: Settings
    indexers: list[Indexer]
    routers: list[Running]
    looked_first: int = 0

    def endpoints(self, number: int = 0) -> list[Endpoint]:
        """List a router's endpoints."""
        return list(self.routers[number].endpoints.all())

    def own_looks(self) -> int:
        """Count how often routers have looked themselves since all had begun."""
        return sum(looks_of(each) for each in self.routers) - self.looked_first

    def looks(self) -> int:
        """Count how often engines were asked for their pages."""
        return sum(engine.looks for engine in self.engines)

    def texts(self) -> dict[str, str]:
        """Read what is shared."""
        with self.server.client(decode_responses=True) as client:
            return dict(client.hgetall(KEYS.gauges))


def looks_of(one: Running) -> int:
    """Count how often a router has looked itself."""
    samples = [s for m in one.metrics.looks.collect() for s in m.samples]
    return int(sum(s.value for s in samples if s.name.endswith("_total")))


@asynccontextmanager
async def place(
    indexers: int = 1, routers: int = 1, engines: int = 1, **endpoint: Any
) -> AsyncIterator[Place]:
    """Run engines without events, a Redis, indexers, and routers that have read what is shared."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kva-"))
        (server,) = stack.enter_context(running([Server(Path(folder), plain_options())]))
        fleet = [await stack.enter_async_context(GaugedEngine().serving()) for _ in range(engines)]
        settings = settings_for(server.url, [{"url": each.url, **endpoint} for each in fleet])
        made = Place(fleet, server, settings, [], [])
        for _ in range(indexers):
            made.indexers.append(await stack.enter_async_context(indexing(settings)))
        await until(lambda: not indexers or len(made.texts()) >= engines)
        for _ in range(routers):
            made.routers.append(await stack.enter_async_context(router(settings)))
        await until(lambda: all(one.readiness() is None for one in made.routers))
        if indexers:
            while not await still(made.own_looks, 0.5):
                pass
            made.looked_first = made.own_looks()
            for engine in fleet:
                engine.looks = 0
        yield made


async def still(count: Callable[[], int], seconds: float = WINDOW_S) -> bool:
    """Tell whether a count stays as it is for a while."""
    before = count()
    await asyncio.sleep(seconds)
    return count() == before


# --- once per fleet -----------------------------------------------------------------------------


async def test_two_indexers_and_two_routers_look_once() -> None:
    """Expect every request for a page to be an indexer's, and as many as one needs for all."""
    async with place(indexers=2, routers=2, engines=4) as here:
        for engine in here.engines:
            engine.running = [3]
        await until(lambda: all(e.others_running == 3 for n in (0, 1) for e in here.endpoints(n)))
        assert here.own_looks() == 0
        before, began = here.looks(), time.monotonic()
        await asyncio.sleep(WINDOW_S)
        rate = (here.looks() - before) / (time.monotonic() - began) / len(here.engines)
        # One look per 0.1 s, and what the tick of the loop adds; two would be 13 and more.
        assert 5 < rate <= 11.5
        assert here.own_looks() == 0
        scrapes = [each.metrics.scrapes.labels("answered").value for each in here.indexers]
        assert sum(scrapes) >= here.looks()


async def test_an_idle_engine_is_looked_at_seldom_and_a_busy_one_at_once() -> None:
    """Expect pauses to grow up to their bound, and to end with the first change that is seen."""
    async with place() as here:
        (engine,) = here.engines
        await asyncio.sleep(4.0)
        before = engine.looks
        await asyncio.sleep(2.0)
        assert engine.looks - before <= 2
        engine.waiting = [2]
        before = engine.looks
        await until(lambda: engine.looks >= before + 10, 5.0)
        assert here.own_looks() == 0


async def test_what_is_shared_is_what_the_page_says() -> None:
    """Expect load, blocks, adapters and when the process began, for each rank of an engine."""
    async with place(data_parallel_size=2) as here:
        (engine,) = here.engines
        engine.running, engine.waiting = [1, 5], [0, 2]
        engine.more = (
            'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b c",'
            'waiting_lora_adapters=""} 1.79e+09\n'
        )
        zero, one = here.endpoints()
        await until(lambda: one.gauges.running == 5 and zero.gauges.running == 1)
        assert (one.waiting, zero.waiting) == (2, 0)
        for each in (zero, one):
            assert (each.block_size, each.gauges.blocks) == (16, 100)
            assert each.adapters.running == {"a", "b c"}
            assert each.adapters.most == 4
            assert each.gauges_age_s(time.monotonic()) < 1.0
        assert sorted(here.texts()) == [engine.name(0), engine.name(1)]
        assert engine.looks <= 40
        assert here.own_looks() == 0


async def test_an_engine_that_begins_anew_is_seen_to() -> None:
    """Expect its next process to be another life, though no router has looked."""
    async with place() as here:
        (engine,) = here.routers[0].endpoints.engines()
        assert engine.lives == 1
        here.engines[0].start = "1795429999.0"
        await until(lambda: engine.lives == 2)
        assert here.own_looks() == 0


async def test_a_key_is_sent_and_stands_nowhere() -> None:
    """Expect an engine that asks for its key to be read, by indexers as by routers."""
    with tempfile.NamedTemporaryFile("w", suffix=".key") as file:
        file.write("canary-key\n")
        file.flush()
        async with place(api_key_file=file.name) as here:
            (engine,) = here.engines
            engine.key, engine.running = "canary-key", [4]
            await until(lambda: here.endpoints()[0].others_running == 4)
            assert engine.refused == 0
            assert here.own_looks() == 0
            assert "canary" not in str(here.texts())


async def test_an_engine_whose_key_the_indexer_lacks_is_left_to_routers(redis_url: str) -> None:
    """Expect the indexer to start all the same: the index needs no key."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        file = Path(folder) / "key"
        async with GaugedEngine(key="k").serving() as engine:
            settings = settings_for(redis_url, [{"url": engine.url, "api_key_file": str(file)}])
            async with indexing(settings):
                file.write_text("k")
                async with router(settings) as one:
                    engine.running = [2]
                    await until(lambda: next(iter(one.endpoints.all())).others_running == 2)
                    assert looks_of(one) == engine.looks


async def test_a_configuration_that_changes_is_followed() -> None:
    """Expect an engine that is gone not to be looked at, and one that is back to be again."""
    async with place(engines=2, routers=0) as here:
        (indexer,), gone = here.indexers, here.engines[1]
        fewer = here.settings.model_copy(update={"endpoints": here.settings.endpoints[:1]})
        indexer._configure(fewer)
        await asyncio.sleep(0.2)
        assert await still(lambda: gone.looks, 2.5)
        before = here.engines[0].looks
        indexer._configure(here.settings)
        gone.running, looks = [1], gone.looks
        await until(lambda: gone.looks > looks + 5 and here.engines[0].looks > before)


# --- who looks when something is missing --------------------------------------------------------


async def test_without_an_indexer_routers_look_themselves() -> None:
    """Expect each to look at its own pace."""
    async with place(indexers=0, routers=2) as here:
        here.engines[0].running = [6]
        await until(lambda: all(here.endpoints(n)[0].others_running == 6 for n in (0, 1)))
        assert here.own_looks() == here.looks()
        assert all(looks_of(one) > 1 for one in here.routers)


@pytest.mark.parametrize("how", ["frozen", "away"])
async def test_while_redis_is_gone_routers_look_themselves(how: str) -> None:
    """Expect it after a second, not before, and an end of it when Redis is back."""
    async with place(routers=2) as here:
        here.engines[0].running = [1]
        assert here.own_looks() == 0
        began = time.monotonic()
        if how == "frozen":
            os.kill(here.server.pid, signal.SIGSTOP)
        else:
            here.server.kill()
        await until(lambda: here.own_looks() > 0, 4.0)
        took_s = time.monotonic() - began
        assert 0.5 < took_s < limits.GAUGES_STALE_S + 0.5
        here.engines[0].running = [7]
        await until(lambda: all(here.endpoints(n)[0].others_running == 7 for n in (0, 1)))
        assert here.routers[0].readiness() is None
        if how == "frozen":
            os.kill(here.server.pid, signal.SIGCONT)
        else:
            here.server.start()
        await asyncio.sleep(1.5)
        assert await still(here.own_looks)
        here.engines[0].running = [8]
        await until(lambda: all(here.endpoints(n)[0].others_running == 8 for n in (0, 1)))


@pytest.mark.timeout(60)
async def test_a_killed_owner_is_followed_by_another() -> None:
    """Expect routers to look themselves until another indexer does, soon after the lease."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kva-")))
        (server,) = stack.enter_context(running([Server(folder, plain_options())]))
        publisher = await stack.enter_async_context(FakePublisher())
        engine = await stack.enter_async_context(GaugedEngine(running=[2]).serving())
        source = {"url": engine.url, "events": publisher.events, "replay": publisher.replay}
        settings = settings_for(server.url, [source])
        # So long that what is shared goes stale before the lease is over.
        options = {"lease_s": 2.0, "metrics_interval_s": 0.1}
        processes = stack.enter_context(indexer_processes(folder, settings, 2, **options))
        owners = Shard(MODEL, 0).owners
        with server.client(decode_responses=True) as client:
            await until(lambda: bool(client.hget(KEYS.gauges, engine.name())), 15.0)
            one = await stack.enter_async_context(router(settings))
            await until(lambda: one.readiness() is None)
            assert looks_of(one) == 0
            owner = str(client.hget(owners, engine.name())).split(" ")[0]
            victim = next(p for p in processes if owner in p.log.read_text())
            victim.kill()
            began = time.monotonic()
            await until(lambda: looks_of(one) > 0)
            await until(lambda: owner not in str(client.hget(owners, engine.name())))
            await asyncio.sleep(0.6)
            assert await still(lambda: looks_of(one))
            assert time.monotonic() - began < 8.0
            endpoint = next(iter(one.endpoints.all()))
            assert endpoint.gauges_age_s(time.monotonic()) < 1.0


async def test_a_stall_of_our_own_is_not_taken_for_silence() -> None:
    """Expect what was shared meanwhile to be read before anybody is looked at."""
    async with place() as here:
        before = here.own_looks()
        time.sleep(limits.GAUGES_STALE_S + 0.5)  # noqa: ASYNC251 - that is the stall
        assert await still(here.own_looks)
        assert here.own_looks() == before


async def test_the_health_of_an_engine_is_for_each_router_to_find() -> None:
    """Expect `up=0` to make routers look, what they see to decide, and the end of it alike."""
    async with place(engines=2, routers=2) as here:
        async with AsyncExitStack() as stack:
            (gone,) = [await stack.enter_async_context(GaugedEngine().serving())]
            port = gone.port
        assert port
        away = here.engines[0]
        ends = [here.endpoints(n)[0] for n in (0, 1)]
        away.hangs = True
        await until(lambda: not any(each.healthy for each in ends), 15.0)
        assert "up=0" in here.texts()[away.name()]
        assert all(here.endpoints(n)[1].healthy for n in (0, 1))
        away.hangs = False
        await until(lambda: all(each.healthy for each in ends))
        # Until the indexer, which leaves alone what is away, has looked again.
        async with asyncio.timeout(10 * limits.SCRAPE_AWAY_S):
            while not await still(here.own_looks):
                pass


async def test_a_request_that_failed_makes_its_router_look() -> None:
    """Expect it to find out at once whether the engine is there, the others not to be troubled."""
    async with place(routers=2) as here:
        one, other = here.endpoints(0)[0], here.endpoints(1)[0]
        assert await still(here.own_looks, 0.5)
        before = [looks_of(router) for router in here.routers]
        one.failures += 1
        await until(lambda: one.failures == 0, 2.0)
        assert [looks_of(router) for router in here.routers] == [before[0] + 1, before[1]]
        assert other.failures == 0
        assert await still(here.own_looks, 0.5)


# --- what is written, and how old it is ---------------------------------------------------------


async def shared_by(redis_url: str, act: Callable[[GaugeWriter], Awaitable[None]]) -> None:
    """Write as an indexer does."""
    client = connect(redis_url, timeout_s=1.0, connections_max=None)
    await act(GaugeWriter(client, KEYS))
    await client.aclose()


async def test_a_sample_is_as_old_as_it_was_when_it_was_written(redis_url: str) -> None:
    """Expect no sample to look newer than it is, however long it waited to be written."""

    async def act(writer: GaugeWriter) -> None:
        at_s = time.monotonic() - 3.0
        seen = Seen(Sample(is_up=True, gauges=EngineGauges(running=1.0)), at_s, 0.2)
        await writer.write({EndpointName(f"e:{n}"): seen for n in range(1_200)})

    await shared_by(redis_url, act)
    client = connect(redis_url, timeout_s=1.0, connections_max=None)
    found = await GaugeReader(client).read(KEYS)
    await client.aclose()
    assert len(found.texts) == 1_200
    for text in found.texts.values():
        shared = SharedSample.from_text(text.decode())
        assert 3_000 <= found.now_ms - shared.at_ms < 3_500
        assert shared.every_ms == 200
    with Redis.from_url(redis_url) as plain:
        assert 0 < plain.ttl(KEYS.gauges) <= limits.GAUGES_KEPT_S


async def test_endpoints_that_are_gone_are_taken_out(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expect neither what is configured, nor what somebody has just written, to go."""
    monkeypatch.setattr(limits, "GAUGES_FORGET_S", 1.0)
    now_s = time.monotonic()
    up = Sample(is_up=True)

    async def act(writer: GaugeWriter) -> None:
        old, new = Seen(up, now_s - 5.0, 0.2), Seen(up, now_s, 0.2)
        await writer.write({EndpointName("old:1"): old, EndpointName("new:1"): new})
        await writer.write({EndpointName("kept:1"): old})
        with Redis.from_url(redis_url) as plain:
            plain.hset(KEYS.gauges, "odd:1", "what is this")
        await writer.forget({EndpointName("kept:1")})

    await shared_by(redis_url, act)
    with Redis.from_url(redis_url, decode_responses=True) as plain:
        assert sorted(plain.hgetall(KEYS.gauges)) == ["kept:1", "new:1"]


@pytest.mark.parametrize(
    ("text", "is_believed"),
    [
        ("at={now} every=60000 up=1 running=9 waiting=0 kv=0", True),
        ("at={now} every=100 up=1 running=9 waiting=0 kv=0 from=tomorrow", True),
        ("at={now} every=60000 up=0", False),
        ("at={old} every=100 up=1 running=9 waiting=0 kv=0", False),
        ("at={new} every=100 up=1 running=9 waiting=0 kv=0", False),
        ("at={now} every=60000 up=1 running=nan waiting=0 kv=0", False),
        ("\xff", False),
    ],
)
async def test_what_is_old_or_odd_is_not_believed(
    redis_url: str, text: str, *, is_believed: bool
) -> None:
    """Expect the router to look itself then, and to take nothing over of it."""
    async with GaugedEngine(running=[1]).serving() as engine:
        settings = settings_for(redis_url, [{"url": engine.url}])
        now = int(time.time() * 1e3)
        written = text.format(now=now, old=now - 1_500, new=now + 5_000)
        with Redis.from_url(redis_url) as client:
            client.hset(KEYS.gauges, engine.name(), written.encode("latin-1"))
        async with router(settings) as one:
            await until(lambda: one.readiness() is None)
            (endpoint,) = one.endpoints.all()
            assert endpoint.others_running == (9 if is_believed else 1)
            assert (looks_of(one) == 0) == is_believed


async def test_a_foreign_key_is_no_board(redis_url: str) -> None:
    """Expect readers and writers to fail as if Redis were away, and requests not to."""
    async with GaugedEngine(running=[1]).serving() as engine:
        settings = settings_for(redis_url, [{"url": engine.url}])
        with Redis.from_url(redis_url) as client:
            client.set(KEYS.gauges, "mine")
        async with indexing(settings), router(settings) as one:
            await until(lambda: one.readiness() is None)
            (endpoint,) = one.endpoints.all()
            await until(lambda: endpoint.others_running == 1)
            assert one.metrics.gauge_errors.labels("wrongtype").value > 0


async def test_an_owner_reads_what_others_have_looked_at(redis_url: str) -> None:
    """Each rank has its own sample, which may be another indexer's; what is none is left out."""
    client = connect(redis_url, timeout_s=1.0, connections_max=None)
    names = [EndpointName(name) for name in ("a:1", "a:1#1", "b:1", "c:1")]
    try:
        seen = {
            name: Seen(Sample(is_up=True, gauges=EngineGauges(blocks=blocks)), 0.0, 0.2)
            for name, blocks in zip(names, (100, 200), strict=False)
        }
        await GaugeWriter(client, KEYS).write(seen)
        await client.hset(KEYS.gauges, names[2], "spam")
        found = {
            name: told.sample.gauges.blocks
            async for name, told in OwnGauges(client).read(MODEL, names[1:])
        }
        assert found == {names[1]: 200}
    finally:
        await client.aclose()

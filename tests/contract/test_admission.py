"""What is too much is refused at the door (C11), before its body is read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from kvatlas.common import limits
from kvatlas.common.errors import Overloaded
from kvatlas.common.settings import RouterSettings, Settings
from kvatlas.router.admission import Admission, Ask
from kvatlas.router.keys import hash_key
from kvatlas.router.metrics import RouterMetrics
from tests.contract.test_proxy import ANSWER, BODY, CHAT, one_engine, routed, settings_for
from tests.fakes.engines import until
from tests.fakes.upstream import Exchange, plain, upstream


def admission(**bounds: Any) -> Admission:
    """Make one with some bounds."""
    return Admission(RouterSettings(**bounds), RouterMetrics())


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"requests_max": 2}, "requests"),
        ({"held_bytes_max": 2_500}, "bytes"),
        ({"tenant_requests_max": 2}, "tenant_requests"),
        ({"tenant_held_bytes_max": 2_500}, "tenant_bytes"),
        ({}, None),
    ],
)
def test_each_bound_refuses_and_is_free_again(bounds: dict[str, int], reason: str | None) -> None:
    """The third request is over the bound; when one has ended it is not; failures free, too."""
    door, ask = admission(**bounds), Ask("a", 1_000)
    with door.admitted(ask):
        with door.admitted(ask):
            assert door.refusal(ask) == reason
        with pytest.raises(KeyError), door.admitted(ask):
            raise KeyError
        assert door.refusal(ask) is None
        is_own = reason is not None and reason.startswith("tenant")
        with door.admitted(Ask("b", 1_000)):
            assert door.refusal(ask) == (None if is_own else reason)
            assert door.refusal(Ask(None, 1_000)) == (None if is_own else reason)


def test_a_refused_request_counts_for_nothing() -> None:
    """However many are refused, what is let in is the same."""
    door = admission(requests_max=1)
    with door.admitted(Ask("a", 1)):
        for _ in range(3):
            with pytest.raises(Overloaded), door.admitted(Ask("a", 1)):
                raise AssertionError("it was let in")
    assert door.refusal(Ask("a", 1)) is None


async def test_a_late_loop_sheds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stall is borne, steady lateness is not, and when it is over all are let in again."""
    monkeypatch.setattr(limits, "LAG_LOOK_S", 0.0)
    now = 0.0
    late = 0.0

    def clock() -> float:
        nonlocal now
        now += late / 2
        return now

    door = Admission(RouterSettings(shed_lag_s=0.1), RouterMetrics(), clock)
    task = asyncio.create_task(door.run())
    ask = Ask(None, 1)

    async def measured(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    late = 1.0
    await measured(2)
    assert door.refusal(ask) is None
    await measured(10)
    assert (door.refusal(ask), door.lag_s) == ("lag", 0.5)
    late = 0.0
    await measured(2)
    assert door.refusal(ask) is None
    task.cancel()


async def test_clients_are_told_and_others_served(redis_url: str) -> None:
    """429 with Retry-After; GET and readiness go on; the place is free after the answer."""
    release = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await release.wait()
        await plain(ANSWER)(exchange)

    async with one_engine(slowly, redis_url, requests_max=1) as (engine, running, client):
        first = asyncio.create_task(client.post(CHAT, json=BODY))
        async with asyncio.timeout(5):
            while not engine.requests:  # noqa: ASYNC110 - it is the state of what runs beside
                await asyncio.sleep(0.01)
        async with client.post(CHAT, json=BODY) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
            assert (await reply.json())["error"]["code"] == "overloaded"
        for path in ("/v1/models", "/readyz"):
            async with client.get(path) as reply:
                assert reply.status == 200
        release.set()
        assert (await first).status == 200
        async with client.post(CHAT, json=BODY) as reply:
            assert reply.status == 200
        page = generate_latest(running.metrics.registry).decode()
    assert 'kvatlas_router_shed_total{reason="requests"} 1.0' in page
    assert "kvatlas_router_admitted 0.0" in page
    assert "kvatlas_router_held_bytes 0.0" in page


async def test_a_body_is_refused_unread(redis_url: str, tmp_path: Path) -> None:
    """By its length, or as the longest there may be where that is not told."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{hash: '{hash_key('k')}', tenant: a}}]")  # a test's own file
    bounds = {"held_bytes_max": 4_096, "body_bytes_max": 8_192, "api_keys_file": keys}
    async with one_engine(plain(ANSWER), redis_url, **bounds) as (engine, _, client):
        key = {"x-api-key": "k"}
        async with client.post(CHAT, json=BODY, headers=key) as reply:
            assert reply.status == 200
        async with client.post(CHAT, data=b" " * 5_000, headers=key) as reply:
            assert reply.status == 429
        reader, writer = await asyncio.open_connection("127.0.0.1", client_port(client))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nx-api-key: k\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
        writer.close()
        assert len(engine.requests) == 1


def client_port(client: aiohttp.ClientSession) -> int:
    """Give where a client's requests go."""
    port = client._base_url.port if client._base_url else None
    assert port
    return port


async def test_a_model_is_bound_behind_its_name(redis_url: str) -> None:
    """Its bound is its own, by whatever name it is asked for; others' requests are let in."""
    may_end = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await may_end.wait()
        await plain(ANSWER)(exchange)

    async with upstream(waiting) as engine:
        settings = settings_for([engine.port], redis_url).model_dump(
            mode="json", exclude_defaults=True
        )
        (model,) = settings["models"]
        settings["models"] = [
            model | {"requests_max": 1, "aliases": ["n"]},
            model | {"name": "other"},
        ]
        settings["endpoints"].append({"url": "http://127.0.0.1:9", "model": "other"})
        async with routed(Settings.model_validate(settings)) as (running, client):
            first = asyncio.create_task(client.post(CHAT, json=BODY))
            await until(lambda: bool(engine.requests))
            named = {**BODY, "model": "n"}
            async with client.post(CHAT, json=named) as reply:
                assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
            async with client.post(CHAT, json={**BODY, "model": "other"}) as reply:
                assert reply.status in {502, 503}
            assert running.metrics.shed.labels("model_requests").value == 1
            may_end.set()
            assert (await first).status == 200
            async with client.post(CHAT, json=BODY) as reply:
                assert reply.status == 200

"""Limits of tenants: all routers count together, and nobody waits for Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from kvatlas.common import limits
from kvatlas.common.errors import ConfigError, RateLimited
from kvatlas.common.keyspace import used_key
from kvatlas.common.redis_client import connect
from kvatlas.router.keys import Client, Rates, hash_key, read_keys
from kvatlas.router.metrics import RouterMetrics
from kvatlas.router.rates import Grant, RateLimits
from kvatlas.router.usage import Usage
from tests.contract.test_proxy import BODY, CHAT, one_engine, routed, settings_for
from tests.fakes.upstream import plain, upstream

ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 70}}'
KEY = {"Authorization": "Bearer a-key"}


def tenant(requests: int = 0, tokens: int = 0, name: str = "a") -> Client:
    """Give a client whose tenant has limits."""
    return Client(name, rates=Rates(requests_per_minute=requests, tokens_per_minute=tokens))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[AsyncRedis]:
    """Give a connection as routers write with."""
    client = connect(redis_url, timeout_s=1.0, connections_max=None)
    yield client
    await client.aclose()


def counting(redis: AsyncRedis) -> RateLimits:
    """Give what one router counts with."""
    return RateLimits(redis, 1.0, RouterMetrics())


async def refused(rates: RateLimits, client: Client, tokens: int) -> dict[str, str]:
    """Take what is not there; give the headers of the refusal."""
    with pytest.raises(RateLimited) as caught:
        await rates.take(client, tokens)
    return dict(caught.value.headers)


async def test_two_routers_count_together(redis: AsyncRedis) -> None:
    """A request that one let in is one less at the other; another tenant has its own."""
    first, second = counting(redis), counting(redis)
    for rates in (first, second, first):
        assert await rates.take(tenant(requests=3), 1)
    told = await refused(second, tenant(requests=3), 1)
    assert told["x-ratelimit-limit-requests"] == "3"
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert 18 <= int(told["Retry-After"]) <= 20
    assert await second.take(tenant(requests=3, name="b"), 1)
    with pytest.raises(RateLimited):
        second.check(tenant(requests=3))
    first.check(tenant(requests=3))  # nobody has told it
    second.check(tenant(requests=4))  # another limit than the one that was reached


async def test_tokens_are_reserved_and_settled(redis: AsyncRedis) -> None:
    """What an answer took counts with the next call; a failed one gives back what it had."""
    rates = counting(redis)
    limited = tenant(tokens=1_000)
    grant = await rates.take(limited, 400)
    assert grant is not None
    assert dict(grant.headers)["x-ratelimit-remaining-tokens"] == "600"
    rates.settle(grant, 200, Usage(400, None, 500))
    told = await refused(rates, limited, 200)
    assert int(told["x-ratelimit-remaining-tokens"]) in range(100, 110)
    assert 5 <= int(told["Retry-After"]) <= 6
    failed = await rates.take(limited, 50)
    rates.settle(failed, 502, None)
    left = await rates.take(limited, 60)
    assert left is not None
    rates.settle(left, 499, None)  # nobody knows what the engine did
    assert int(dict(left.headers)["x-ratelimit-remaining-tokens"]) in range(40, 60)
    await rates.flush()
    assert int((await refused(rates, limited, 100))["x-ratelimit-remaining-tokens"]) < 60


async def test_what_is_used_drains(redis: AsyncRedis) -> None:
    """By Redis' clock, at the rate of the limit; a clock that was set back drains nothing."""
    rates = counting(redis)
    limited = tenant(requests=60)
    for _ in range(60):
        await rates.take(limited, 1)
    await refused(counting(redis), limited, 1)
    at = int(await redis.hget(used_key("a"), "at") or 0)
    await redis.hset(used_key("a"), "at", str(at - 2_000))
    for _ in range(2):
        assert await counting(redis).take(limited, 1)
    await refused(counting(redis), limited, 1)
    await redis.hset(used_key("a"), "at", str(at + 3_600_000))
    await refused(counting(redis), limited, 1)


async def test_debt_and_long_prompts_are_bounded(redis: AsyncRedis) -> None:
    """A prompt over the limit is let in alone; the wait after it is some minutes, no hours."""
    rates = counting(redis)
    limited = tenant(tokens=100)
    grant = await rates.take(limited, 5_000)
    assert grant is not None
    rates.settle(grant, 200, Usage(5_000, None, 10**6))
    wait_s = int((await refused(rates, limited, 100))["Retry-After"])
    assert wait_s == pytest.approx(60 * limits.RATES_DEBT_MINUTES, abs=2)
    assert 0 < await redis.ttl(used_key("a")) <= 60 * (limits.RATES_DEBT_MINUTES + 1)


async def test_who_has_no_limit_costs_redis_nothing(redis: AsyncRedis) -> None:
    """No key of ours is made."""
    rates = counting(redis)
    assert await rates.take(None, 5) is None
    assert await rates.take(Client("a"), 5) is None
    rates.check(None)
    rates.settle(None, 200, None)
    assert await redis.exists(used_key("a")) == 0


async def test_without_redis_everybody_is_let_in(tmp_path: Path) -> None:
    """It is counted, and after some failures Redis is left alone for a while."""
    metrics = RouterMetrics()
    client = connect(f"unix://{tmp_path}/nobody", timeout_s=0.1, connections_max=None)
    rates = RateLimits(client, 0.1, metrics)
    for _ in range(limits.LOOKUP_FAILURES_MAX + 2):
        assert await rates.take(tenant(requests=1), 1) is None
    rates.settle(Grant(tenant(requests=1), 1), 200, Usage(1, None, 1))
    await rates.flush()
    await client.aclose()
    page = generate_latest(metrics.registry).decode()
    failed = limits.LOOKUP_FAILURES_MAX + 1
    assert f'limit_failures_total{{reason="connection"}} {failed}.0' in page
    assert 'limit_failures_total{reason="paused"} 2.0' in page


def keys_file(tmp_path: Path, limit: str) -> Path:
    """Write a file with one key and everybody's limits."""
    file = tmp_path / "keys.yaml"
    entry = f"keys: [{{hash: '{hash_key('a-key')}', tenant: a}}]"
    file.write_text(f"{entry}\nlimits: {{'*': {limit}}}\n")
    return file


@pytest.mark.usefixtures("patient")
async def test_clients_are_told(redis_url: str, tmp_path: Path) -> None:
    """Answers say what is left, refusals when to come back; the answer's tokens count."""
    file = keys_file(tmp_path, "{requests_per_minute: 2, tokens_per_minute: 1000}")
    async with one_engine(plain(ANSWER), redis_url, api_keys_file=file) as (
        engine,
        running,
        client,
    ):
        for left in ("1", "0"):
            async with client.post(CHAT, json=BODY, headers=KEY) as reply:
                assert reply.status == 200
                assert reply.headers["x-ratelimit-remaining-requests"] == left
                tokens = int(reply.headers["x-ratelimit-remaining-tokens"])
        assert 870 <= tokens < 900
        for _ in range(2):
            async with client.post(CHAT, json=BODY, headers=KEY) as reply:
                assert reply.status == 429
                assert 1 <= int(reply.headers["Retry-After"]) <= 30
                assert (await reply.json())["error"]["code"] == "rate_limit_exceeded"
        assert len(engine.requests) == 2
        page = generate_latest(running.metrics.registry).decode()
    assert 'kvatlas_router_rate_limited_total{kind="requests",tenant="a"} 2.0' in page


@pytest.mark.usefixtures("patient")
async def test_a_busy_key_of_another_type_lets_in(redis_url: str, tmp_path: Path) -> None:
    """Whatever stands in Redis, the request is answered."""
    with Redis.from_url(redis_url) as sync:
        sync.set(used_key("a"), "foreign")
    file = keys_file(tmp_path, "{requests_per_minute: 1}")
    async with upstream(plain(ANSWER)) as engine:
        settings = settings_for([engine.port], redis_url, api_keys_file=file)
        async with routed(settings) as (_, client):
            for _ in range(2):
                async with client.post(CHAT, json=BODY, headers=KEY) as reply:
                    assert reply.status == 200


def test_limits_in_the_file() -> None:
    """A tenant's own come before everybody's; faults are told."""
    digest = hash_key("k"), hash_key("l")
    text = (
        f"keys: [{{hash: '{digest[0]}', tenant: a}}, {{hash: '{digest[1]}', tenant: b}}]\n"
        "limits: {a: {requests_per_minute: 5}, '*': {tokens_per_minute: 7}}"
    )
    ring = read_keys(text.encode())
    found = [ring.find(key) for key in "kl"]
    assert found == [tenant(requests=5), tenant(tokens=7, name="b")]
    with pytest.raises(ConfigError, match=r"requests_per_minute: int_type"):
        read_keys(b"keys: []\nlimits: {a: {requests_per_minute: x}}")

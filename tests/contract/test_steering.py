"""What clients may not tell engines; and what the router tells nobody."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from kvatlas.common.prompt import CHAT_PATH
from tests.fakes.place import (
    CHAT,
    END,
    LAST,
    TEXT,
    USAGE,
    events_of,
    faked,
)
from tests.fakes.upstream import SSE_HEAD, Exchange, plain

pytestmark = pytest.mark.usefixtures("patient")

CANARY = "zyzzyva-marker"


async def test_what_steers_an_engine_is_cut_and_nothing_else(redis_url: str) -> None:
    """The rest arrives byte for byte, the prompt is rendered as if it had never been there."""
    raw = (
        b'{ "kv\\u005ftransfer_params" : {"prompt_token_ids":[1,2]}, "model":"m" ,"x":1.50,'
        b'"vllm_xargs":{"kv_cache_report_mode":"full", "k" : 1},'
        b'"messages":[{"role":"user","content":"hi"}] ,"kv_transfer_params":null}\n'
    )
    left = (
        b'{ "model":"m" ,"x":1.50,"vllm_xargs":{ "k" : 1},'
        b'"messages":[{"role":"user","content":"hi"}] }\n'
    )
    async with faked(plain(b"{}"), redis_url) as (fake, place):
        async with place.session.post(place.url + CHAT_PATH, data=raw) as reply:
            assert reply.status == 200
            assert int(reply.headers["x-kvatlas-prompt-tokens"]) > 0
        assert fake.requests[0].body == left
        cut = place.running.metrics.members_cut
        assert place.count(cut, "kv_transfer_params") == 1
        assert place.count(cut, "kv_cache_report_mode") == 1
        explain = f"http://127.0.0.1:{place.running.admin_port}/explain"
        async with place.session.post(
            explain, json={"path": CHAT_PATH, "body": json.loads(raw)}
        ) as reply:
            assert (await reply.json())["fallback"] is None


async def test_nothing_of_a_prompt_is_told(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in logs, metrics or Redis, whatever of all this happens to a request that holds it."""

    async def behave(exchange: Exchange) -> None:
        if b"/tokenize" in exchange.head:
            await plain(b'{"tokens": [%d]}' % 1)(exchange)
        elif b'"stream": true' in exchange.body:
            await exchange.send(SSE_HEAD)
            text = {**TEXT, "model": CANARY, "x": CANARY}
            await exchange.chunk(events_of(text, {**END, "y": CANARY}, {**LAST, "z": CANARY}))
            exchange.reset()
            raise ConnectionError
        else:
            await plain(json.dumps({"choices": [CANARY], "usage": USAGE}).encode())(exchange)

    body = {
        **CHAT,
        "messages": [{"role": "user", "content": CANARY}],
        "cache_salt": CANARY,
        "user": CANARY,
        "kv_transfer_params": {CANARY: CANARY},
        "vllm_xargs": {"kv_cache_report_mode": CANARY},
    }
    options: dict[str, Any] = {"token_handover": True, "handover_check_share": 1.0}
    async with faked(behave, redis_url, **options) as (_, place):
        await place.post(body)
        await place.post({**body, CANARY: CANARY, "stream_options": {CANARY: CANARY}})
        await place.torn({**body, "stream": True})
        await asyncio.sleep(0.2)
        page = await place.metrics()
        async with Redis.from_url(redis_url) as redis:
            keys = str(await redis.keys("*"))
    logs = "".join(capfd.readouterr())
    for text in (page, logs, keys):
        assert CANARY not in text
    assert logs.count("request.finished") == 3

"""OpenAI's Responses: the next one goes to the endpoint that keeps the last one."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from kvatlas.common.prompt import RESPONSES_PATH
from kvatlas.router.response_ids import new_id
from kvatlas.simulator.app import engine
from tests.contract.test_proxy import one_engine, routed, settings_for
from tests.fakes.place import fast_engine
from tests.fakes.place import routed as place_of
from tests.fakes.place import settings_for as one_engine_settings
from tests.fakes.upstream import Exchange, plain, upstream

BODY = {"model": "m", "input": "hello"}


async def behave(exchange: Exchange) -> None:
    """Answer with the id that the request brings, as vLLM does."""
    answer = {"id": json.loads(exchange.body)["request_id"], "object": "response", "model": "m"}
    await plain(json.dumps(answer).encode())(exchange)


async def test_the_next_response_is_made_where_the_last_one_was(redis_url: str) -> None:
    """By every router, also one that has not seen the last request."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(upstream(behave)) for _ in range(4)]
        settings = settings_for([each.port for each in engines], redis_url)
        clients = [(await stack.enter_async_context(routed(settings)))[1] for _ in range(2)]
        for number in range(12):
            first, second = clients[number % 2], clients[1 - number % 2]
            async with first.post(RESPONSES_PATH, json=BODY) as reply:
                made, where = await reply.json(), reply.headers["x-kvatlas-endpoint"]
            body = {**BODY, "previous_response_id": made["id"]}
            async with second.post(RESPONSES_PATH, json=body) as reply:
                assert (await reply.json())["id"] != made["id"]
                assert reply.headers["x-kvatlas-endpoint"] == where
    assert sum(bool(each.requests) for each in engines) > 1


@pytest.mark.parametrize("previous", ["resp_1", "", 3, new_id("1.2.3.4:5", "0" * 32)])  # type: ignore[arg-type]
async def test_a_response_of_nobody_is_the_clients_fault(redis_url: str, previous: Any) -> None:
    """400 with the member, and no engine is asked."""
    async with one_engine(behave, redis_url) as (engine, _, client):
        body = {**BODY, "previous_response_id": previous}
        async with client.post(RESPONSES_PATH, json=body) as reply:
            told = (await reply.json())["error"]
            assert (reply.status, told["param"]) == (400, "previous_response_id")
        assert engine.requests == []


async def test_nothing_else_of_a_body_changes(redis_url: str) -> None:
    """One member more, and none where the client names its response itself."""
    raw = b'{ "model":"m", "input" : "x", "previous_response_id": null }'
    own = b'{"request_id":"resp_mine", "model":"m","input":"x"}'
    async with one_engine(behave, redis_url) as (engine, _, client):
        for data in (raw, own):
            async with client.post(RESPONSES_PATH, data=data) as reply:
                made = (await reply.json())["id"]
        assert made == "resp_mine"
    sent = [each.body for each in engine.requests]
    assert sent[0].startswith(raw[:-1] + b',"request_id":"resp_')
    assert sent[1] == own


async def test_stored_responses_are_out_of_reach(redis_url: str) -> None:
    """What an engine keeps is not served."""
    async with one_engine(behave, redis_url) as (engine, _, client):
        for path in ("resp_1", "resp_1/cancel"):
            async with client.post(f"{RESPONSES_PATH}/{path}", json=BODY) as reply:
                assert reply.status == 404
        assert engine.requests == []


@pytest.mark.usefixtures("patient")
async def test_a_response_goes_on_where_it_is_kept(redis_url: str) -> None:
    """By the engine that made it, from its cache; any other engine says that it has none."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine(fast_engine(store_responses=True)))
            for _ in range(2)
        ]
        settings = one_engine_settings(engines[0].url, redis_url)
        settings.endpoints.append(settings.endpoints[0].model_copy(update={"url": engines[1].url}))
        place = await stack.enter_async_context(place_of(settings, engines[0].url))
        session = place.session
        body = {"model": "m", "input": "Which canal is deepest? " * 20, "max_output_tokens": 4}
        async with session.post(place.url + RESPONSES_PATH, json=body) as reply:
            made, where = await reply.json(), reply.headers["x-kvatlas-endpoint"]
        more = {**body, "input": "And then?", "previous_response_id": made["id"]}
        for is_stream in (False, True):
            url = place.url + RESPONSES_PATH
            async with session.post(url, json={**more, "stream": is_stream}) as reply:
                raw = await reply.text()
                assert (reply.status, reply.headers["x-kvatlas-endpoint"]) == (200, where)
                assert reply.headers["x-kvatlas-fallback"] == "prompt:stored"
            told = json.loads(raw.strip().rsplit("data: ", 1)[-1])
            usage = told.get("response", told)["usage"]
            assert usage["input_tokens_details"]["cached_tokens"] >= 16 * 5
        (other,) = [each.url for each in engines if where not in each.url]
        async with session.post(other + RESPONSES_PATH, json=more) as reply:
            assert reply.status == 404
            error = (await reply.json())["error"]
        assert (error["param"], error["type"]) == ("response_id", "invalid_request_error")

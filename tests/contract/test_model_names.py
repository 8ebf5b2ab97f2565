"""Aliases, rewrites and the list of models, over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from yarl import URL

from kvatlas.common.prompt import demo_model_path
from kvatlas.common.settings import Settings
from tests.contract.test_proxy import CHAT, routed
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange, plain, upstream

TEXT = 'they say "model":"org/m"'


def configured(port: int, redis_url: str) -> Settings:
    """Configure a model with a slash in its name, an alias, an adapter and a rewrite."""
    model = {
        "name": "org/m",
        "tokenizer": str(demo_model_path()),
        "aliases": ["short"],
        "lora_adapters": ["org/m/lora"],
        "max_model_len": 4_096,
    }
    router: dict[str, Any] = {"port": 0, "admin_port": 0, "metrics_interval_s": 60}
    return Settings.model_validate(
        {
            "redis": {"url": redis_url},
            "models": [model],
            "endpoints": [{"url": f"http://127.0.0.1:{port}", "model": "org/m"}],
            "router": router | {"rewrites": {"canary": {"org/m": 1, "org/m/lora": 1}}},
        }
    )


def streaming(*pieces: bytes) -> Behaviour:
    """Answer with a stream in these pieces."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        for piece in pieces:
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    return behave


async def test_whole_answers_name_the_model_as_the_client_did(redis_url: str) -> None:
    """And the engine gets the body with another value of `model`, else byte for byte."""
    answer = {"id": "1", "model": "org/m", "choices": [{"message": {"content": TEXT}}]}
    behaviour = plain(json.dumps(answer).encode())
    raw = b'{ "messages":[{"role":"user","content":"short"}],  "model" : "short"}'
    async with upstream(behaviour) as engine:
        settings = configured(engine.port, redis_url)
        async with routed(settings) as (_, client), client.post(CHAT, data=raw) as reply:
            assert await reply.json() == {**answer, "model": "short"}
        assert engine.requests[0].body == raw.replace(b': "short"', b': "org/m"')


async def test_streams_do_too_and_unasked_names_pass(redis_url: str) -> None:
    """Also where the name is split over two pieces; without a rewrite nothing is touched."""
    chunk = json.dumps({"model": "org/m", "choices": [{"delta": {"content": TEXT}}]}).encode()
    pieces = (b"data: " + chunk[:14], chunk[14:] + b"\n\n", b"data: [DONE]\n\n")
    async with upstream(streaming(*pieces)) as engine:
        settings = configured(engine.port, redis_url)
        async with routed(settings) as (_, client):
            body = {"model": "short", "messages": [{"role": "user", "content": "x"}]}
            async with client.post(CHAT, json={**body, "stream": True}) as reply:
                read = await reply.read()
            async with client.post(CHAT, json={**body, "model": "org/m", "stream": True}) as reply:
                untouched = await reply.read()
    assert read == b"".join(pieces).replace(b'{"model": "org/m"', b'{"model": "short"')
    assert untouched == b"".join(pieces)


async def test_an_id_always_meets_the_same_target(redis_url: str) -> None:
    """Both targets are met by some id, each by the same ones when they come again."""
    async with upstream(plain(b'{"model":"x"}')) as engine:
        settings = configured(engine.port, redis_url)
        async with routed(settings) as (_, client):
            for number in [*range(20)] * 2:
                body = {"model": "canary", "messages": [{"role": "user", "content": "x"}]}
                headers = {"X-Request-Id": f"id-{number}"}
                async with client.post(CHAT, json=body, headers=headers) as reply:
                    assert await reply.json() == {"model": "canary"}
    sent = [json.loads(exchange.body)["model"] for exchange in engine.requests]
    assert set(sent) == {"org/m", "org/m/lora"}
    assert sent[:20] == sent[20:]


@pytest.mark.parametrize("written", ["org/m", "org%2Fm", "short", "canary", "org/m/lora"])
async def test_one_model_is_described_as_in_the_list(redis_url: str, written: str) -> None:
    """By every name that clients may ask for, slashes and all."""
    async with upstream(plain(b"{}")) as engine:
        settings = configured(engine.port, redis_url)
        async with routed(settings) as (_, client):
            async with client.get("/v1/models") as reply:
                listed = {entry["id"]: entry for entry in (await reply.json())["data"]}
            async with client.get(f"/v1/models/{written}") as reply:
                assert await reply.json() == listed[written.replace("%2F", "/")]
    assert list(listed) == ["org/m", "org/m/lora", "short", "canary"]
    assert listed["org/m"]["max_model_len"] == listed["short"]["max_model_len"] == 4_096
    assert "max_model_len" not in listed["canary"]


@pytest.mark.parametrize("written", ["other", "org/", "org//m", "ORG/M", "org%252Fm"])
async def test_no_other_name_is_a_model(redis_url: str, written: str) -> None:
    """404 in OpenAI's shape."""
    async with upstream(plain(b"{}")) as engine:
        settings = configured(engine.port, redis_url)
        async with routed(settings) as (running, client):
            url = URL(f"http://127.0.0.1:{running.port}/v1/models/{written}", encoded=True)
            async with client.get(url) as reply:
                told = await reply.json()
                assert reply.status == 404
    assert told["error"]["code"] == "model_not_found"

"""Anthropic's API through the router: matched like chats, bytes unchanged, errors in its shape."""

from __future__ import annotations

import json

import aiohttp
import pytest

from kvatlas.common.prompt import MESSAGES_PATH
from kvatlas.router.paths import COUNT_TOKENS_PATH
from tests.contract.test_probe import explained
from tests.contract.test_proxy import one_engine
from tests.fakes.place import CHAT, MESSAGES, simulated
from tests.fakes.upstream import SSE_HEAD, Exchange, plain

SYSTEM, USER = MESSAGES
BODY = {"model": "m", "max_tokens": 6, "system": SYSTEM["content"], "messages": [USER]}
RAW = json.dumps(BODY, indent=1).encode()


@pytest.mark.usefixtures("patient")
async def test_a_message_matches_what_a_chat_left(redis_url: str) -> None:
    """Its blocks are those of the chat that it becomes."""
    async with simulated(redis_url) as place:
        await place.chat(CHAT)
        await place.settled()
        told = [
            await explained(place.running, body, path)
            for body, path in ((CHAT, "/v1/chat/completions"), (BODY, MESSAGES_PATH))
        ]
    assert [each["fallback"] for each in told] == [None, None]
    matches = [each["candidates"][0]["match_blocks"] for each in told]
    assert matches[0] == matches[1] > 0


@pytest.mark.parametrize("path", [MESSAGES_PATH, COUNT_TOKENS_PATH])
async def test_bodies_and_answers_pass_as_they_are(redis_url: str, path: str) -> None:
    """With the query; nothing is asked for or added. Counting goes by load."""
    answer = b'{"type" : "message", "model":"m", "usage":{"input_tokens":3}}'
    async with (
        one_engine(plain(answer), redis_url) as (engine, _, client),
        client.post(f"{path}?beta=true", data=RAW) as reply,
    ):
        assert await reply.read() == answer
        went_by_load = reply.headers.get("x-kvatlas-fallback") == "path:no_prompt"
        assert went_by_load == (path == COUNT_TOKENS_PATH)
    assert engine.requests[0].body == RAW
    assert engine.requests[0].head.startswith(f"POST {path}?beta=true HTTP".encode())


@pytest.mark.parametrize("path", [MESSAGES_PATH, COUNT_TOKENS_PATH])
@pytest.mark.parametrize(
    ("raw", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b'{"model":1}', 400, "invalid_request_error"),
        (b'{"model":"x"}', 404, "not_found_error"),
    ],
)
async def test_errors_are_in_anthropics_shape(
    redis_url: str, path: str, raw: bytes, status: int, kind: str
) -> None:
    """Those of the router; an engine's pass as they are."""
    async with one_engine(plain(b"{}"), redis_url) as (_, _, client):
        async with client.post(path, data=raw) as reply:
            told = await reply.json()
            assert reply.status == status
        async with client.get(path) as reply:
            wrong_method = await reply.json()
            assert reply.status == 405
    assert told["type"] == wrong_method["type"] == "error"
    assert told["error"]["type"] == kind
    assert set(told["error"]) == {"type", "message"}


async def test_a_stream_whose_engine_fails_ends_with_an_event_of_its_kind(redis_url: str) -> None:
    """So that clients of this API see an error instead of an end."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b'event: ping\ndata: {"type":"ping"}\n\n')
        exchange.reset()

    received: list[bytes] = []
    body = {**BODY, "stream": True}
    async with (
        one_engine(behave, redis_url) as (_, _, client),
        client.post(MESSAGES_PATH, json=body) as reply,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_into(received, reply)
    last = b"".join(received).split(b"\n\n")[1]
    assert last.startswith(b'event: error\ndata: {"type":"error","error":{')


async def read_into(received: list[bytes], reply: aiohttp.ClientResponse) -> None:
    """Keep what comes before the end."""
    while piece := await reply.content.readany():
        received.append(piece)

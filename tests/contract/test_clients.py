"""Clients that people use, against a real router: SDKs of OpenAI and Anthropic, LangChain, curl."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

from kvatlas.common.prompt import CHAT_PATH
from kvatlas.router.openapi import DESCRIPTION
from tests.fakes.place import CHAT, DONE, END, TEXT, Place, events_of, faked, simulated
from tests.fakes.upstream import SSE_HEAD, Exchange, plain

pytestmark = pytest.mark.usefixtures("patient")
HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Which is deepest?"}]
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "depth",
        "parameters": {"type": "object", "properties": {"canal": {"type": "string"}}},
    },
}
CALLS = [
    [{"index": 0, "id": "c1", "type": "function", "function": {"name": "depth", "arguments": ""}}],
    [{"index": 0, "function": {"arguments": '{"canal": '}}],
    [{"index": 0, "function": {"arguments": '"old"}'}}],
]


def sdk(place: Place) -> AsyncOpenAI:
    """Make a client that does not try again by itself."""
    return AsyncOpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, 5 s at most."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to hold")


async def nothing_under_way(place: Place) -> None:
    """Wait until the router counts no request."""
    await until(lambda: not place.endpoint.requests and not place.running.http.open_requests)


async def endless(exchange: Exchange) -> None:
    """Stream until the client leaves."""
    await exchange.send(SSE_HEAD)
    while True:
        await exchange.chunk(events_of(TEXT))
        await asyncio.sleep(0.01)


async def breaking(exchange: Exchange) -> None:
    """Stream an event, then break off."""
    await exchange.send(SSE_HEAD)
    await exchange.chunk(events_of(TEXT))
    await asyncio.sleep(0.05)
    exchange.reset()


async def calling(exchange: Exchange) -> None:
    """Stream a call of a tool."""
    await exchange.send(SSE_HEAD)
    for calls in CALLS:
        choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
        await exchange.chunk(events_of({"id": "1", "choices": [choice]}))
    await exchange.chunk(events_of(END) + DONE)
    await exchange.send(b"0\r\n\r\n")


# --- the OpenAI SDK -------------------------------------------------------------------------
async def test_openai_whole_and_streamed_say_the_same(redis_url: str) -> None:
    """Text, usage, models, completions and the request's id."""
    async with simulated(redis_url) as place, sdk(place) as client:
        assert [model.id async for model in client.models.list()] == ["m"]
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=HELLO, max_tokens=6, extra_headers={"x-request-id": "mine"}
        )
        assert raw.headers["x-request-id"] == "mine"
        whole = raw.parse()
        stream = await client.chat.completions.create(
            model="m",
            messages=HELLO,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert whole.choices[0].message.content == "".join(texts) != ""
        assert whole.usage is not None
        assert chunks[-1].usage is not None
        assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 6
        completed = await client.completions.create(model="m", prompt="The deep", max_tokens=3)
        assert completed.usage is not None
        assert completed.usage.completion_tokens == 3


async def test_openai_tools(redis_url: str) -> None:
    """They are part of the prompt that is matched; calls arrive piece by piece."""
    async with simulated(redis_url) as place, sdk(place) as client:
        for _ in range(2):
            answer = await client.chat.completions.create(
                model="m", messages=HELLO, tools=[TOOL], max_tokens=4
            )
            await place.settled()
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 0
        name, metrics = place.endpoint.name, place.running.metrics
        assert place.count(metrics.predictions, name, "exact") == 2
    async with faked(calling, redis_url) as (_, place), sdk(place) as client:
        stream = await client.chat.completions.create(
            model="m", messages=HELLO, tools=[TOOL], stream=True
        )
        calls = [c.choices[0].delta.tool_calls or [] async for c in stream]
        arguments = "".join(
            call.function.arguments or "" for each in calls for call in each if call.function
        )
        assert json.loads(arguments) == {"canal": "old"}


async def test_openai_errors(redis_url: str) -> None:
    """Each becomes the SDK's own kind, with code and field."""
    async with simulated(redis_url) as place, sdk(place) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="no such one", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=HELLO, max_tokens=-1)
        place.endpoint.url = "http://127.0.0.1:1"
        with pytest.raises(openai.InternalServerError) as away:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert away.value.code in {"upstream_connect", "no_endpoints"}


async def test_openai_sees_that_a_stream_was_torn(redis_url: str) -> None:
    """An engine that breaks off is an error, never an answer that looks complete."""
    async with faked(breaking, redis_url) as (_, place), sdk(place) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        seen: list[Any] = []

        async def read() -> None:
            seen.extend([chunk async for chunk in stream])

        with pytest.raises(openai.APIError, match="the engine failed"):
            await read()
        await nothing_under_way(place)
        assert place.count(place.running.metrics.errors, "m", "torn") == 1


async def test_openai_cancels(redis_url: str) -> None:
    """The engine stops as soon as the client leaves, and nothing stays counted."""
    async with faked(endless, redis_url) as (engine, place), sdk(place) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await nothing_under_way(place)
        await until(lambda: engine.closed_early == 1)
        assert place.count(place.running.metrics.errors, "m", "client_closed") == 1


# --- curl -----------------------------------------------------------------------------------
async def curl(place: Place, body: Any, *options: str) -> tuple[int, str]:
    """Run curl; give its exit status and what it wrote, the HTTP status last."""
    command = shutil.which("curl")
    if command is None:
        pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec(
        command, "-sN", "-w", "\n%{http_code}", *options, "--json", json.dumps(body),
        place.url + CHAT_PATH, stdin=DEVNULL, stdout=PIPE,
    )  # fmt: skip
    written, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, written.decode()


async def test_curl_whole_streamed_and_refused(redis_url: str) -> None:
    """Plain HTTP: an answer, events up to [DONE], an error with its status."""
    async with simulated(redis_url) as place:
        code, written = await curl(place, {**CHAT, "tools": [TOOL]})
        body, _, status = written.rpartition("\n")
        assert (code, status) == (0, "200")
        assert json.loads(body)["choices"][0]["message"]["content"]
        code, written = await curl(place, {**CHAT, "stream": True})
        assert code == 0
        assert written.endswith("data: [DONE]\n\n\n200")
        code, written = await curl(place, {**CHAT, "model": "no such one"})
        assert code == 0
        assert written.endswith("\n404")
        assert '"code":"model_not_found"' in written


async def test_curl_sees_torn_streams_and_may_leave(redis_url: str) -> None:
    """A torn stream is a failed transfer (18), with the error as its last event."""
    async with faked(breaking, redis_url) as (_, place):
        code, written = await curl(place, {**CHAT, "stream": True})
        assert code == 18
        assert "upstream_failed" in written
        assert "[DONE]" not in written
    async with faked(endless, redis_url) as (_, place):
        code, _ = await curl(place, {**CHAT, "stream": True}, "--max-time", "0.5")
        assert code == 28
        await nothing_under_way(place)


# --- where they are installed -----------------------------------------------------------------
async def test_langchain_whole_and_streamed(redis_url: str) -> None:
    """ChatOpenAI works as with any server of that API."""
    pytest.importorskip("langchain_openai")
    chat_openai = importlib.import_module("langchain_openai").ChatOpenAI
    async with simulated(redis_url) as place:
        model = chat_openai(
            model="m", base_url=f"{place.url}/v1", api_key="none", max_retries=0, max_tokens=6
        )
        whole = await model.ainvoke("Which is deepest?")
        streamed = [chunk.content async for chunk in model.astream("Which is deepest?")]
        assert whole.content == "".join(streamed) != ""


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "deep"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 1},
}


async def test_anthropic_whole_and_refused(redis_url: str) -> None:
    """Its SDK reads answers, and errors as its own kinds, where /v1/messages is served."""
    anthropic = pytest.importorskip("anthropic")
    if "/v1/messages" not in DESCRIPTION["paths"]:
        pytest.skip("/v1/messages is not served")
    async with faked(plain(json.dumps(MESSAGE).encode()), redis_url) as (_, place):
        client = anthropic.AsyncAnthropic(base_url=place.url, api_key="none", max_retries=0)
        async with client:
            answer = await client.messages.create(model="m", max_tokens=4, messages=HELLO)
            assert answer.content[0].text == "deep"
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="no such one", max_tokens=4, messages=HELLO)

"""Clients that people use, against a real router: SDKs of OpenAI and Anthropic, LangChain, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

from kvatlas.common.prompt import CHAT_PATH
from tests.fakes.place import CHAT, DONE, END, TEXT, Place, events_of, faked, simulated
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange

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
    await until(lambda: not place.endpoint.requests and not place.running.desk.open_requests)


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
        place.endpoint.url, place.endpoint.target = "http://127.0.0.1:1", None
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
    assert command is not None, "curl is one of the clients"
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


# --- Anthropic's SDK, and OpenAI's for responses ------------------------------------------------
USE: list[dict[str, Any]] = [
    {"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9},
    }},
    {"type": "content_block_start", "index": 0, "content_block": {
        "type": "tool_use", "id": "c1", "name": "depth", "input": {}}},
    {"type": "content_block_delta", "index": 0, "delta": {
        "type": "input_json_delta", "partial_json": '{"canal": '}},
    {"type": "content_block_delta", "index": 0, "delta": {
        "type": "input_json_delta", "partial_json": '"old"}'}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
     "usage": {"input_tokens": 1, "output_tokens": 7, "cache_read_input_tokens": 8}},
    {"type": "message_stop"},
]  # fmt: skip
FUNCTION = {"id": "fc_1", "type": "function_call", "call_id": "c1", "name": "depth"}
RESPONSE = {
    "id": "resp_1", "object": "response", "model": "m", "created_at": 1, "output": [],
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}  # fmt: skip
CALL: list[dict[str, Any]] = [
    {"type": "response.created", "sequence_number": 0, "response": RESPONSE},
    {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0,
     "item": {**FUNCTION, "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "sequence_number": 2, "output_index": 0,
     "item_id": "fc_1", "delta": '{"canal": "old"}'},
    {"type": "response.output_item.done", "sequence_number": 3, "output_index": 0,
     "item": {**FUNCTION, "arguments": '{"canal": "old"}'}},
    {"type": "response.completed", "sequence_number": 4, "response": {
        **RESPONSE, "output": [{**FUNCTION, "arguments": '{"canal": "old"}'}],
        "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 8},
                  "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0},
                  "total_tokens": 16}}},
]  # fmt: skip


def telling(events: list[dict[str, Any]], *, breaks: bool = False) -> Behaviour:
    """Stream named events; to break off comes behind the first one."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        for event in events[:1] if breaks else events:
            name = event["type"].encode()
            await exchange.chunk(b"event: " + name + b"\n" + events_of(event))
            await asyncio.sleep(0.01)
        if breaks:
            exchange.reset()
        else:
            await exchange.send(b"0\r\n\r\n")

    return behave


def counted(place: Place) -> tuple[float, float, float]:
    """Give what was counted of usage: input, cached and output tokens."""
    metrics = place.running.metrics
    each = (metrics.input_tokens, metrics.cached_tokens, metrics.output_tokens)
    first, second, third = (place.count(metric, "m") for metric in each)
    return first, second, third


async def test_anthropic_tools_and_torn_streams(redis_url: str) -> None:
    """Calls arrive piece by piece and are counted; a stream that breaks off is an error."""
    said: Any = {"model": "m", "max_tokens": 9, "messages": HELLO}
    async with faked(telling(USE), redis_url) as (_, place):
        client = AsyncAnthropic(base_url=place.url, api_key="none", max_retries=0)
        async with client, client.messages.stream(**said) as stream:
            (block,) = (await stream.get_final_message()).content
        assert block.type == "tool_use"
        assert block.input == {"canal": "old"}
        await nothing_under_way(place)
        assert counted(place) == (9, 8, 7)
    async with faked(telling(USE, breaks=True), redis_url) as (_, place):
        client = AsyncAnthropic(base_url=place.url, api_key="none", max_retries=0)
        async with client, client.messages.stream(**said) as stream:
            with pytest.raises(anthropic.APIStatusError, match="the engine failed"):
                await stream.get_final_message()
        await nothing_under_way(place)
        assert place.count(place.running.metrics.errors, "m", "torn") == 1


async def test_openai_responses_tools_and_torn_streams(redis_url: str) -> None:
    """Alike."""
    asked: Any = {"model": "m", "input": "Which?", "stream": True}
    async with faked(telling(CALL), redis_url) as (_, place), sdk(place) as client:
        events = [event async for event in await client.responses.create(**asked)]
        assert events[-1].response.output[0].arguments == '{"canal": "old"}'
        await nothing_under_way(place)
        assert counted(place) == (9, 8, 7)
    async with faked(telling(CALL, breaks=True), redis_url) as (_, place), sdk(place) as client:
        stream = await client.responses.create(**asked)

        async def read() -> None:
            async for _ in stream:
                pass

        with pytest.raises(openai.APIError, match="the engine failed"):
            await read()
        await nothing_under_way(place)
        assert place.count(place.running.metrics.errors, "m", "torn") == 1

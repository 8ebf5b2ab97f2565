"""SDKs that people use, against a router of its own process, simulated engines behind it.

Each whole and streamed, with tools, with every error of theirs, and with a client that leaves.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam, ToolParam
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from kvatlas.cli.fleet import MODEL, Fleet, FleetPlan, running_fleet
from kvatlas.router.keys import hash_key

KEY, LIMITED = "the-key-of-the-tests", "the-key-with-a-limit"
SYSTEM = "You answer questions about the canals of the old town. " * 8
USER = "Which one is the deepest?"
CHAT: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": USER},
]
SAID: list[MessageParam] = [{"role": "user", "content": USER}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"canal": {"type": "string"}}}
CHAT_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "depth", "parameters": SCHEMA},
}
MESSAGE_TOOL: ToolParam = {"name": "depth", "input_schema": {**SCHEMA, "type": "object"}}
RESPONSE_TOOL: FunctionToolParam = {
    "type": "function",
    "name": "depth",
    "parameters": SCHEMA,
    "strict": False,
}
LONG = 20_000
"""Tokens of an answer that nobody waits for."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run a router that asks for keys, and two engines."""
    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys.write_text(
        f"keys:\n- {{hash: '{hash_key(KEY)}', tenant: open}}\n"
        f"- {{hash: '{hash_key(LIMITED)}', tenant: limited}}\n"
        "limits: {limited: {requests_per_minute: 1}}\n"
    )
    plan = FleetPlan(
        engines=2,
        routers=1,
        router={"debug_headers": True, "api_keys_file": str(keys), "tokenize_paths": True},
        engine={"decode_step_ms": 2.0, "num_blocks": 8_192, "store_responses": True},
    )
    with running_fleet(plan) as running:
        yield running


def url_of(fleet: Fleet) -> str:
    """Give where the router is."""
    return f"http://{fleet.routers[0].name}"


def openai_sdk(fleet: Fleet, key: str = KEY) -> AsyncOpenAI:
    """Make a client that does not try again by itself."""
    return AsyncOpenAI(base_url=f"{url_of(fleet)}/v1", api_key=key, max_retries=0)


def anthropic_sdk(fleet: Fleet, key: str = KEY) -> AsyncAnthropic:
    """Make a client that does not try again by itself."""
    return AsyncAnthropic(base_url=url_of(fleet), api_key=key, max_retries=0)


@asynccontextmanager
async def langchain(
    fleet: Fleet, key: str = KEY, max_tokens: int = 6, **options: Any
) -> AsyncIterator[ChatOpenAI]:
    """Make a client that does not try again by itself, and close what it does not."""
    with httpx2.Client() as unused:
        async with httpx2.AsyncClient() as http:
            yield ChatOpenAI(
                model=MODEL,
                base_url=f"{url_of(fleet)}/v1",
                api_key=SecretStr(key),
                max_retries=0,
                max_completion_tokens=max_tokens,
                http_client=unused,
                http_async_client=http,
                **options,
            )


async def thrice(ask: Callable[[], Awaitable[Any]]) -> None:
    """Ask more often than the limit allows."""
    for _ in range(3):
        await ask()


def engines_say(fleet: Fleet, metric: str, **labels: str) -> float:
    """Sum a metric over the engines."""
    total = 0.0
    for engine in fleet.engines:
        with urllib.request.urlopen(f"http://{engine.name}/metrics", timeout=5) as page:
            text = page.read().decode()
        for family in text_string_to_metric_families(text):
            total += sum(
                sample.value
                for sample in family.samples
                if sample.name == metric and labels.items() <= sample.labels.items()
            )
    return total


def aborted(fleet: Fleet) -> float:
    """Count requests that engines gave up since their client had left."""
    return engines_say(fleet, "vllm:request_success_total", finished_reason="abort")


async def until_it_stops(fleet: Fleet, before: float) -> None:
    """Wait until engines have given up one request more, and compute nothing."""
    for _ in range(500):
        has_stopped = await asyncio.to_thread(aborted, fleet) > before
        running = await asyncio.to_thread(engines_say, fleet, "vllm:num_requests_running")
        if has_stopped and running == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the engine goes on")


# --- OpenAI's ---------------------------------------------------------------------------------
async def test_openai_chats(fleet: Fleet) -> None:
    """Whole and streamed with tools say the same; the second one was cached."""
    async with openai_sdk(fleet) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        whole = await client.chat.completions.create(
            model=MODEL, messages=CHAT, max_tokens=6, tools=[CHAT_TOOL]
        )
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=CHAT,
            max_tokens=6,
            tools=[CHAT_TOOL],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == said != ""
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 6
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > 0


async def test_openai_completions(fleet: Fleet) -> None:
    """Whole and streamed; a stream that nobody asked for its usage brings none."""
    async with openai_sdk(fleet) as client:
        whole = await client.completions.create(model=MODEL, prompt=SYSTEM, max_tokens=5)
        stream = await client.completions.create(
            model=MODEL, prompt=SYSTEM, max_tokens=5, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) != ""
    assert all(chunk.usage is None for chunk in chunks)


async def test_openai_responses(fleet: Fleet) -> None:
    """Whole, streamed, with tools and reasoning, and going on from one that an engine keeps."""
    async with openai_sdk(fleet) as client:
        whole = await client.responses.create(
            model=MODEL,
            instructions=SYSTEM,
            input=USER,
            max_output_tokens=6,
            tools=[RESPONSE_TOOL],
            reasoning={"effort": "low"},
        )
        stream = await client.responses.create(
            model=MODEL,
            instructions=SYSTEM,
            input=USER,
            max_output_tokens=6,
            tools=[RESPONSE_TOOL],
            reasoning={"effort": "low"},
            stream=True,
        )
        events = [event async for event in stream]
        more = await client.responses.create(
            model=MODEL, input="And then?", previous_response_id=whole.id, max_output_tokens=4
        )
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert whole.output_text == "".join(said) != ""
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.input_tokens_details.cached_tokens > 0
    assert more.previous_response_id == whole.id
    assert more.output_text


async def openai_errors(fleet: Fleet, ask: Callable[[AsyncOpenAI, Any], Awaitable[Any]]) -> None:
    """Meet each error as the SDK's own kind."""
    async with openai_sdk(fleet) as client:
        with pytest.raises(openai.BadRequestError):
            await ask(client, {"max": -1})
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(client, {"model": "no such one"})
    assert unknown.value.code == "model_not_found"
    async with openai_sdk(fleet, "another-key") as client:
        with pytest.raises(openai.AuthenticationError):
            await ask(client, {})
    async with openai_sdk(fleet, LIMITED) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            await thrice(lambda: ask(client, {}))
    assert int(limited.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("api", ["chat", "completion", "response"])
async def test_openai_errors(fleet: Fleet, api: str, is_stream: bool) -> None:  # noqa: FBT001 - a case
    """400, 404, 401 and 429, whatever was asked for."""

    async def ask(client: AsyncOpenAI, change: dict[str, Any]) -> Any:
        model, most = change.get("model", MODEL), change.get("max", 2)
        if api == "chat":
            return await client.chat.completions.create(
                model=model, messages=CHAT, max_tokens=most, stream=is_stream
            )
        if api == "completion":
            return await client.completions.create(
                model=model, prompt="x", max_tokens=most, stream=is_stream
            )
        return await client.responses.create(
            model=model, input="x", max_output_tokens=most, stream=is_stream
        )

    await openai_errors(fleet, ask)


@pytest.mark.parametrize("api", ["chat", "response"])
async def test_openai_leaves_a_stream(fleet: Fleet, api: str) -> None:
    """The engine stops computing."""
    before = aborted(fleet)
    async with openai_sdk(fleet) as client:
        stream: Any
        if api == "chat":
            stream = await client.chat.completions.create(
                model=MODEL, messages=CHAT, max_tokens=LONG, stream=True
            )
        else:
            stream = await client.responses.create(
                model=MODEL, input=USER, max_output_tokens=LONG, stream=True
            )
        async for _ in stream:
            break
        await stream.close()
        await until_it_stops(fleet, before)


async def test_openai_leaves_before_the_answer(fleet: Fleet) -> None:
    """Alike where nothing was streamed: a timeout is enough."""
    before = aborted(fleet)
    async with openai_sdk(fleet) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.5).chat.completions.create(
                model=MODEL, messages=CHAT, max_tokens=LONG
            )
    await until_it_stops(fleet, before)


# --- Anthropic's ------------------------------------------------------------------------------
async def test_anthropic_messages(fleet: Fleet) -> None:
    """Whole and streamed with tools say the same, count what counting says, and are cached."""
    async with anthropic_sdk(fleet) as client:
        counted = await client.messages.count_tokens(
            model=MODEL, system=SYSTEM, messages=SAID, tools=[MESSAGE_TOOL]
        )
        whole = await client.messages.create(
            model=MODEL, max_tokens=6, system=SYSTEM, messages=SAID, tools=[MESSAGE_TOOL]
        )
        async with client.messages.stream(
            model=MODEL, max_tokens=6, system=SYSTEM, messages=SAID, tools=[MESSAGE_TOOL]
        ) as stream:
            texts = [text async for text in stream.text_stream]
            streamed = await stream.get_final_message()
    assert whole.content[0].type == streamed.content[0].type == "text"
    assert whole.content[0].text == streamed.content[0].text == "".join(texts) != ""
    assert (whole.stop_reason, streamed.stop_reason) == ("max_tokens", "max_tokens")
    usage = streamed.usage
    assert (usage.cache_read_input_tokens or 0) > 0
    parts = (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens)
    assert sum(part or 0 for part in parts) == counted.input_tokens
    assert usage.output_tokens == 6


@pytest.mark.parametrize("is_stream", [False, True])
async def test_anthropic_errors(fleet: Fleet, is_stream: bool) -> None:  # noqa: FBT001 - a case
    """400, 404, 401 and 429, as the SDK's own kinds."""

    async def ask(client: AsyncAnthropic, model: str = MODEL, most: int = 2) -> Any:
        return await client.messages.create(
            model=model, max_tokens=most, messages=SAID, stream=is_stream
        )

    async with anthropic_sdk(fleet) as client:
        with pytest.raises(anthropic.BadRequestError):
            await ask(client, most=-1)
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await ask(client, model="no such one")
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="no such one", messages=SAID)
    assert isinstance(unknown.value.body, dict)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    async with anthropic_sdk(fleet, "another-key") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await ask(client)
    async with anthropic_sdk(fleet, LIMITED) as client:
        with pytest.raises(anthropic.RateLimitError):
            await thrice(lambda: ask(client))


async def test_anthropic_leaves_a_stream(fleet: Fleet) -> None:
    """The engine stops computing."""
    before = aborted(fleet)
    async with (
        anthropic_sdk(fleet) as client,
        client.messages.stream(model=MODEL, max_tokens=LONG, messages=SAID) as stream,
    ):
        async for _ in stream.text_stream:
            break
    await until_it_stops(fleet, before)


# --- LangChain's ------------------------------------------------------------------------------
@tool
def depth(canal: str) -> str:
    """Tell how deep a canal is."""
    return f"{canal}: 3 m"


@pytest.mark.parametrize("use_responses_api", [False, True])
async def test_langchain(fleet: Fleet, use_responses_api: bool) -> None:  # noqa: FBT001 - a case
    """Invoked and streamed with tools say the same, over either API."""
    async with langchain(fleet, use_responses_api=use_responses_api, stream_usage=True) as model:
        bound = model.bind_tools([depth])
        messages = [("system", SYSTEM), ("user", USER)]
        whole = await bound.ainvoke(messages)
        parts = [part async for part in bound.astream(messages)]
    assert whole.text == "".join(part.text for part in parts) != ""
    used = [part.usage_metadata for part in parts if part.usage_metadata]
    assert sum(usage["output_tokens"] for usage in used) == 6
    assert sum(usage["input_token_details"].get("cache_read", 0) for usage in used) > 0


async def test_langchain_errors_and_leaving(fleet: Fleet) -> None:
    """They are the OpenAI SDK's; a stream that is left stops the engine."""
    async with langchain(fleet) as model:
        with pytest.raises(openai.NotFoundError):
            await model.bind(model="no such one").ainvoke(USER)
        with pytest.raises(openai.BadRequestError):
            await model.bind(max_tokens=-1).ainvoke(USER)
    async with langchain(fleet, "another-key") as model:
        with pytest.raises(openai.AuthenticationError):
            await model.ainvoke(USER)
    async with langchain(fleet, LIMITED) as model:
        with pytest.raises(openai.RateLimitError):
            await thrice(lambda: model.ainvoke(USER))
    before = aborted(fleet)
    async with langchain(fleet, max_tokens=LONG) as model:
        stream = model.astream(USER)
        async for _ in stream:
            break
        await cast("AsyncGenerator[Any]", stream).aclose()
    await until_it_stops(fleet, before)


# --- curl -------------------------------------------------------------------------------------
async def curl(
    fleet: Fleet, path: str, body: Any, *options: str, key: str = KEY
) -> tuple[int, str, str]:
    """Run curl; give its exit status, the HTTP status and what it wrote."""
    command = shutil.which("curl")
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        command, "-sN", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key}", *options,
        "--json", json.dumps(body), url_of(fleet) + path, stdin=DEVNULL, stdout=PIPE,
    )  # fmt: skip
    written, _ = await process.communicate()
    assert process.returncode is not None
    text, _, status = written.decode().rpartition("\n")
    return process.returncode, status, text


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 3, "tools": [CHAT_TOOL]},
    "/v1/completions": {"prompt": SYSTEM, "max_tokens": 3},
    "/v1/messages": {"messages": SAID, "max_tokens": 3, "tools": [MESSAGE_TOOL]},
    "/v1/responses": {"input": USER, "max_output_tokens": 3, "tools": [RESPONSE_TOOL]},
}
LIMITS = {"/v1/responses": "max_output_tokens"}
ENDS = {
    "/v1/chat/completions": "data: [DONE]\n\n",
    "/v1/completions": "data: [DONE]\n\n",
    "/v1/messages": 'data: {"type":"message_stop"}\n\n',
    "/v1/responses": '"type":"response.completed"}\n\n',
}


@pytest.mark.parametrize("path", BODIES)
async def test_curl(fleet: Fleet, path: str) -> None:
    """An answer, events up to the last one, errors with their statuses; one who leaves."""
    body = {"model": MODEL, **BODIES[path]}
    assert (await curl(fleet, path, body))[:2] == (0, "200")
    code, status, events = await curl(fleet, path, {**body, "stream": True})
    assert (code, status) == (0, "200")
    assert events.endswith(ENDS[path])
    for change, expected in (({"model": "no such one"}, "404"), ({"stream": "x"}, "400")):
        assert (await curl(fleet, path, {**body, **change}))[:2] == (0, expected)
    assert (await curl(fleet, path, body, key="another-key"))[1] == "401"
    statuses = [(await curl(fleet, path, body, key=LIMITED))[1] for _ in range(3)]
    assert statuses[-1] == "429"
    before = aborted(fleet)
    long = {**body, "stream": True, LIMITS.get(path, "max_tokens"): LONG}
    code, _, _ = await curl(fleet, path, long, "--max-time", "0.5")
    assert code == 28
    await until_it_stops(fleet, before)


async def test_curl_counts_and_tokenizes(fleet: Fleet) -> None:
    """The paths that compute nothing."""
    count = {"model": MODEL, "messages": SAID}
    _, status, told = await curl(fleet, "/v1/messages/count_tokens", count)
    assert (status, json.loads(told)["input_tokens"] > 0) == ("200", True)
    _, status, told = await curl(fleet, "/tokenize", {"model": MODEL, "prompt": "deep"})
    assert status == "200"
    tokens = {"model": MODEL, "tokens": json.loads(told)["tokens"]}
    _, status, told = await curl(fleet, "/detokenize", tokens)
    assert (status, json.loads(told)) == ("200", {"prompt": "deep"})

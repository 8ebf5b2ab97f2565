"""Conversations over every path that becomes a prompt: matched, and right about what is cached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH
from kvatlas.router.keys import hash_key
from tests.fakes.place import MESSAGES, Place, simulated

SYSTEM, USER = MESSAGES
NEXT = {"role": "user", "content": "And the oldest one?"}
SCHEMA = {"type": "object", "properties": {"canal": {"type": "string"}}}
SIZE = 16


@dataclass(frozen=True, slots=True)
class Talk:
    """How one conversation goes.

    Attributes:
        first: the body that opens it.
        second: the one that goes on, given what was answered.
        usage: finds the usage in a whole answer, or in one of the last events of a stream.
        cached: reads what was cached from a usage, and the prompt's tokens.
    """

    path: str
    first: dict[str, Any]
    second: Callable[[str], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]
    usage: Callable[[dict[str, Any]], dict[str, Any] | None]
    cached: Callable[[dict[str, Any]], tuple[int, int]]


def _chat_cached(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def _message_cached(usage: dict[str, Any]) -> tuple[int, int]:
    cached, created = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return cached, usage["input_tokens"] + cached + created


def _response_cached(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["input_tokens_details"]["cached_tokens"], usage["input_tokens"]


def _response_usage(told: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = told.get("response", told).get("usage")
    return found


def _talks() -> dict[str, Talk]:
    chat = {"model": "m", "max_tokens": 6}
    tool = {"name": "depth", "description": "How deep it is.", "parameters": SCHEMA}
    message = {**chat, "system": SYSTEM["content"]}
    message_tools = [
        {"name": "depth", "description": "How deep it is.", "input_schema": SCHEMA},
    ]
    response = {"model": "m", "max_output_tokens": 6, "instructions": SYSTEM["content"]}
    call = {"type": "function_call", "call_id": "c1", "name": "depth", "arguments": "{}"}
    used = {"type": "tool_use", "id": "c1", "name": "depth", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "3 m"}

    def said(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text}

    def of_message(second: Callable[[str], list[Any]], **more: Any) -> Talk:
        return Talk(
            MESSAGES_PATH,
            {**message, "messages": [USER], **more},
            lambda text: {**message, "messages": [USER, *second(text)], **more},
            lambda told: told["content"][0]["text"],
            lambda told: told.get("usage"),
            _message_cached,
        )

    def of_response(second: Callable[[str], list[Any]], **more: Any) -> Talk:
        return Talk(
            RESPONSES_PATH,
            {**response, "input": [USER], **more},
            lambda text: {**response, "input": [USER, *second(text)], **more},
            lambda told: told["output"][0]["content"][0]["text"],
            _response_usage,
            _response_cached,
        )

    return {
        "chat": Talk(
            CHAT_PATH,
            {**chat, "messages": MESSAGES},
            lambda text: {**chat, "messages": [*MESSAGES, said(text), NEXT]},
            lambda told: told["choices"][0]["message"]["content"],
            lambda told: told.get("usage"),
            _chat_cached,
        ),
        "completion": Talk(
            COMPLETIONS_PATH,
            {**chat, "prompt": SYSTEM["content"]},
            lambda text: {**chat, "prompt": SYSTEM["content"] + text + " And then?"},
            lambda told: told["choices"][0]["text"],
            lambda told: told.get("usage"),
            _chat_cached,
        ),
        "message": of_message(lambda text: [said(text), NEXT]),
        "message with tools": of_message(
            lambda text: [
                said([{"type": "text", "text": text}, used]),  # type: ignore[arg-type]
                {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
            ],
            tools=message_tools,
        ),
        "response": of_response(lambda text: [said(text), NEXT]),
        "response with tools and reasoning": of_response(
            lambda text: [
                {
                    "type": "reasoning",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "Hm."}],
                },
                said(text),
                call,
                {"type": "function_call_output", "call_id": "c1", "output": "3 m"},
                NEXT,
            ],
            tools=[{"type": "function", **tool}],
            reasoning={"effort": "low"},
        ),
    }


async def ask(place: Place, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """Send a body; give the predicted match and the answer."""
    async with place.session.post(place.url + path, json=body) as reply:
        raw = await reply.read()
        assert reply.status == 200, raw
        assert "x-kvatlas-fallback" not in reply.headers
        return int(reply.headers["x-kvatlas-match-tokens"]), raw


def events_in(raw: bytes) -> list[dict[str, Any]]:
    """Read a stream's events."""
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", _talks())
async def test_a_conversation_is_matched_and_predicted(redis_url: str, name: str) -> None:
    """The second turn finds the first one's blocks; whole and streamed, engine and router agree."""
    talk = _talks()[name]
    async with simulated(redis_url) as place:
        _, raw = await ask(place, talk.path, talk.first)
        await place.settled()
        second = talk.second(talk.text(json.loads(raw)))
        match, raw = await ask(place, talk.path, second)
        usage = talk.usage(json.loads(raw))
        assert usage is not None
        cached, tokens = talk.cached(usage)
        assert match == cached > 0
        await place.settled()
        options = {"stream_options": {"include_usage": True}} if "choices" in str(raw) else {}
        match, raw = await ask(place, talk.path, {**second, "stream": True, **options})
        usage = [found for event in events_in(raw) if (found := talk.usage(event))][-1]
        cached, streamed_tokens = talk.cached(usage)
        assert match == cached > 0
        assert streamed_tokens == tokens
        # All of the prompt's blocks were left by the request before, but for the last token's.
        assert cached == (tokens - 1) // SIZE * SIZE
        metrics, endpoint = place.running.metrics, place.endpoint.name
        assert place.count(metrics.predictions, endpoint, "exact") == 3
        assert place.count(metrics.output_tokens, "m") == 18
        assert place.count(metrics.usage_reports, endpoint, "with_cached") == 3
        assert place.count(metrics.input_tokens, "m") > 2 * tokens
        assert place.count(metrics.cached_tokens, "m") >= cached


@pytest.mark.usefixtures("patient")
async def test_paths_share_their_blocks(redis_url: str) -> None:
    """A conversation that goes on over another API finds what the first one left."""
    async with simulated(redis_url) as place:
        await ask(place, *_opening("chat"))
        await place.settled()
        found = [await ask(place, *_opening(name)) for name in ("chat", "message", "response")]
        assert len({match for match, _ in found}) == 1
        assert found[0][0] > 0


def _opening(name: str) -> tuple[str, dict[str, Any]]:
    talk = _talks()[name]
    return talk.path, talk.first


@pytest.mark.usefixtures("patient")
async def test_the_first_token_of_a_response_is_not_its_first_event(redis_url: str) -> None:
    """The time to the first token is that of the prompt, though the stream begins before it."""
    slow = {"time_scale": 1.0, "prefill_tokens_per_s": 500.0, "decode_step_ms": 1.0}
    path, body = _opening("response")
    async with simulated(redis_url, slow) as place:
        _, raw = await ask(place, path, {**body, "stream": True})
        _, tokens = _response_cached(_response_usage(events_in(raw)[-1]) or {})
        page = await place.metrics()
    name = 'kvatlas_router_first_byte_seconds_sum{model="m"} '
    seconds = float(page.split(name)[1].split("\n")[0])
    assert seconds >= tokens / 500.0


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", ["message", "response"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_was_used_counts_for_limits(
    redis_url: str,
    tmp_path: Path,
    name: str,
    is_stream: bool,  # noqa: FBT001 - a case
) -> None:
    """Prompt and answer as the engine tells them, with the tenant's next request."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"keys:\n- {{hash: '{hash_key('a-key')}', tenant: a}}\n"
        "limits: {a: {tokens_per_minute: 10000}}\n"
    )
    path, body = _opening(name)
    limit = "max_tokens" if name == "message" else "max_output_tokens"
    body = {**body, "stream": is_stream, limit: 600}
    async with simulated(redis_url, api_keys_file=str(keys)) as place:
        left = []
        for _ in range(2):
            header = {"x-api-key": "a-key"}
            async with place.session.post(place.url + path, json=body, headers=header) as reply:
                await reply.read()
                assert reply.status == 200
                left.append(int(reply.headers["x-ratelimit-remaining-tokens"]))
                tokens = int(reply.headers["x-kvatlas-prompt-tokens"])
    # 600 were answered; a minute's limit comes back in a minute, 167 in a second.
    assert left[0] == 10_000 - tokens
    assert 10_000 - 2 * tokens - 600 <= left[1] < 10_000 - 2 * tokens - 100

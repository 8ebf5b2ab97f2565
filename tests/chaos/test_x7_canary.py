"""X7, a canary in every field and header, through requests that go well and that go wrong.

The same canary flies through all other chaos tests (`conftest.canary`); here it is in every place
that a client, an engine or an operator may put a text, with tracing on and keys asked for.
"""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from redis import Redis

from kvatlas.common.errors import ConfigError
from kvatlas.router.keys import hash_key
from kvatlas.router.tracing import Tracer
from tests.chaos.conftest import Report
from tests.contract.test_traces import Kept
from tests.fakes.canary import Canary
from tests.fakes.chaos_place import own_redis
from tests.fakes.door import Door, demo_template, door, model_folder
from tests.fakes.engines import router_settings
from tests.fakes.upstream import SSE_HEAD, Behaviour, Exchange, plain

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
OTHERS = ("/v1/messages/count_tokens", "/v1/embeddings", "/tokenize", "/v1/models/{}", "/{}")
FIELDS = (
    "user", "cache_salt", "prompt_cache_key", "safety_identifier", "request_id", "session_id",
    "previous_response_id", "chat_template", "response_format", "guided_json", "stop", "bad_words",
    "metadata", "service_tier", "tool_choice", "reasoning_effort", "mm_processor_kwargs",
    "kv_transfer_params", "vllm_xargs", "stream", "n", "max_tokens", "temperature", "{}",
)  # fmt: skip
HEADERS = (
    "authorization", "x-api-key", "cookie", "x-request-id", "traceparent", "tracestate", "baggage",
    "user-agent", "referer", "x-forwarded-for", "content-type", "accept", "x-session-token",
    "x-conversation", "x-gateway-destination-endpoint", "x-kvatlas-model", "content-encoding",
    "expect", "x-{}",
)  # fmt: skip


def full(mark: str) -> dict[str, Any]:
    """Write a body that has the mark wherever a chat has text."""
    call = {"id": mark, "type": "function", "function": {"name": mark, "arguments": f'"{mark}"'}}
    return {
        "model": "demo",
        "prompt": mark * 20,
        "input": mark * 20,
        "system": mark,
        "max_tokens": 1,
        "messages": [
            {"role": "system", "content": mark, "name": mark},
            {"role": "user", "content": [{"type": "text", "text": mark * 20}]},
            {"role": "assistant", "content": mark, "tool_calls": [call], "reasoning": mark},
            {"role": "tool", "tool_call_id": mark, "content": mark},
            {"role": "user", "content": mark * 20},
        ],
        "tools": [{"type": "function", "function": {"name": mark, "description": mark,
                   "parameters": {"type": "object", "properties": {mark: {"const": mark}}}}}],
        "documents": [{"title": mark, "text": mark}],
        "chat_template_kwargs": {"enable_thinking": mark, mark: mark},
    }  # fmt: skip


def bodies(mark: str) -> Iterator[Any]:
    """Write bodies: a good one, one per field that holds the mark, and some that are broken."""
    yield full(mark)
    yield {**full(mark), "model": mark}
    for name in FIELDS:
        yield {**full(mark), name.format(mark): mark}
        yield {**full(mark), name.format(mark): {mark: [mark]}}
    yield {**full(mark), "messages": mark}
    yield {**full(mark), "messages": [{"role": mark, "content": mark}]}
    yield {**full(mark), "messages": [{"role": "user", "content": [{"type": mark}]}]}
    good = json.dumps(full(mark)).encode()
    yield from (good[:-9], b"[" + good + b"]", mark.encode(), b'{"' + mark.encode() + b'": NaN}')
    yield good.replace(mark.encode(), mark.encode() + rb"\ud800", 1)


def settings_of(folder: Path, canary: Canary) -> dict[str, Any]:
    """Write settings that ask for keys, one of which is the canary, and salt tenants."""
    keys, salt = folder / "keys.yaml", folder / "salt"
    keys.write_text(f"keys: [{{hash: '{hash_key(canary.text)}', tenant: team-a}}]")
    salt.write_text(canary.text * 2)
    return {
        "api_keys_file": keys,
        "tenant_salt_file": salt,
        "load_paths": ["/v1/embeddings"],
        "tokenize_paths": True,
        "session": {"header": "x-session-token", "id_headers": ["x-conversation"]},
    }


@asynccontextmanager
async def traced(
    redis_url: str, canary: Canary, behaviour: Behaviour, folder: Path, **model: Any
) -> AsyncIterator[tuple[Door, Kept]]:
    """Run a router that traces every request; the canary must be in no span."""
    kept = Kept()
    options = settings_of(folder, canary)
    async with door(redis_url, canary, behaviour, model, **options) as place:
        place.running.desk.tracer = Tracer(kept, 1.0, Random(1))
        yield place, kept
        canary.look("traces", repr(kept.spans))
        place.running.desk.tracer = None


def echo_of(canary: Canary) -> dict[str, Behaviour]:
    """Give engines that answer with the canary, well and in every way that is wrong."""
    mark = canary.text.encode()
    usage = b'{"id":"%s","model":"%s","choices":[],"usage":{"prompt_tokens":"%s"}}' % (
        mark, mark, mark
    )  # fmt: skip

    async def torn(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(b"data: " + usage + b"\n\n")
        exchange.reset()

    async def garbage(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/9.9 " + mark + b"\r\n" + mark + b"\r\n\r\n")
        exchange.reset()

    async def closes(exchange: Exchange) -> None:
        exchange.reset()

    return {
        "well": plain(usage, "200 OK", b"X-Secret: " + mark, b"Set-Cookie: s=" + mark),
        "refuses": plain(usage, "400 Bad Request"),
        "fails": plain(mark, "500 " + canary.text),
        "torn": torn,
        "garbage": garbage,
        "closes": closes,
    }


@pytest.mark.parametrize("kind", ["well", "refuses", "fails", "torn", "garbage", "closes"])
@pytest.mark.timeout(120)
async def test_x7_in_every_field_of_every_path(
    redis_url: str, canary: Canary, tmp_path: Path, log: io.StringIO, kind: str
) -> None:
    """Whatever becomes of a request, its texts are in no log, metric, span or key."""
    async with traced(redis_url, canary, echo_of(canary)[kind], tmp_path) as (place, kept):
        count = 0
        for path in PATHS:
            for body in bodies(canary.text):
                seen = await send(place, body, path)
                count += 1
                assert seen is None or seen < 500 or kind in {"fails", "garbage", "closes"}
        for path in OTHERS:
            await send(place, full(canary.text), path.format(canary.text))
        assert len(kept.spans) > count
    assert len(log.getvalue().splitlines()) > count
    Report("X7", f"a canary in every field, an engine that {kind}", "nowhere but in answers").tell()


async def send(place: Door, body: Any, path: str, **headers: str) -> int | None:
    """Send a body; give the status, None where the answer broke off."""
    try:
        return (await place.ask(body, path, **headers)).status
    except (aiohttp.ClientError, ConnectionError):
        return None


async def test_x7_in_every_header(redis_url: str, canary: Canary, tmp_path: Path) -> None:
    """Headers of clients are nowhere, those with a meaning for us included.

    A request id of the allowed form is the one thing that a client may have us repeat.
    """
    async with traced(redis_url, canary, echo_of(canary)["well"], tmp_path) as (place, _):
        for name in HEADERS:
            for value in (f"{canary.text}!", f"Bearer {canary.text}", f"s={canary.text}; x", "\t "):
                headers = {"x-api-key": canary.text, name.format(canary.text): value}
                await send(place, full(canary.text), PATHS[0], **headers)
    Report("X7", "a canary in every header", "in no log, metric, span or key").tell()


async def test_x7_where_parts_fail(canary: Canary, tmp_path: Path) -> None:
    """Redis stopped, a template that raises and one that is killed: errors say nothing either."""
    raises = "{{ raise_exception(messages[0].content) }}"
    ends = "{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}"
    well = echo_of(canary)["well"]
    with own_redis() as server:
        for number, source in enumerate((raises, demo_template() + ends, "{{ no.such.thing }}")):
            folder = model_folder(tmp_path / str(number), source)
            async with traced(server.url, canary, well, tmp_path, tokenizer=str(folder)) as (
                place, _
            ):  # fmt: skip
                assert await send(place, full(canary.text), PATHS[0]) == 200
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    assert await send(place, full(canary.text), PATHS[1]) == 200
                finally:
                    os.kill(server.pid, signal.SIGCONT)
    Report("X7", "a canary while Redis, or a template, fails", "nowhere").tell()


def test_x7_configurations_keep_their_secrets(canary: Canary, redis_url: str) -> None:
    """Neither the text of settings nor the faults of bad ones hold a password or a key."""
    url = redis_url.replace("unix://", f"unix://user:{canary.text}@")
    settings = router_settings(["http://127.0.0.1:1"], url)
    canary.look("settings", repr(settings) + str(settings))
    for bad in ({"models": canary.text}, {"router": {"port": canary.text}}, {"redis": canary.text}):
        with pytest.raises(ConfigError) as caught:
            type(settings).model_validate(bad)
        canary.look("faults", str(caught.value))


def test_x7_the_canary_can_be_found(redis_url: str) -> None:
    """The search finds what is there: a test that cannot fail would prove nothing."""
    made = Canary("canary-to-be-found")
    with Redis.from_url(redis_url) as client:
        client.hset("kvatlas:x", "field", made.text)
        client.set(made.text, "1")
        made.look_into(client)
        client.flushall()
    assert set(made.seen_in) == {"keys", "values"}

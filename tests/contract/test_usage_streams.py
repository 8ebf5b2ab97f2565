"""Streams whose usage the router asks for: it is read, and the stream is the client's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from tests.fakes.place import (
    DONE,
    END,
    LAST,
    MADE_UP,
    MESSAGES,
    STREAM,
    TEXT,
    Place,
    events_of,
    faked,
    simulated,
)
from tests.fakes.upstream import SSE_HEAD, Exchange, Upstream

pytestmark = pytest.mark.usefixtures("patient")


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
async def test_the_usage_of_a_stream_is_read_and_the_stream_is_the_clients(
    redis_url: str, path: str
) -> None:
    """From the second stream on it is asked for; what arrives is what the engine sends unasked."""
    body: dict[str, Any] = {"model": "m", "max_tokens": 6, "stream": True}
    body |= {"messages": MESSAGES} if path == CHAT_PATH else {"prompt": "canal " * 40}
    variants: list[dict[str, Any]] = [
        {},
        {"stream_options": None},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False, "continuous_usage_stats": True}},
        {"stream_options": {"continuous_usage_stats": True}},
        {"stop": [" "]},
        {"max_tokens": 1},
        {"return_token_ids": True},
    ]
    async with simulated(redis_url) as place:
        reports = place.running.metrics.usage_reports
        await place.post(body, path)
        assert place.count(reports, place.endpoint.name, "with_cached") == 0
        assert place.endpoint.usage.state == "on_request"
        for number, options in enumerate(variants):
            wanted = await place.post({**body, **options}, path, url=place.engine_url)
            assert await place.post({**body, **options}, path) == wanted, options
            assert place.count(reports, place.endpoint.name, "with_cached") == number + 1


async def test_streams_that_are_not_asked_for(redis_url: str) -> None:
    """What a client asks for itself, several answers, and options that the engine refuses."""
    usage = {"include_usage": True}
    variants: list[tuple[dict[str, Any], int]] = [
        ({"stream_options": usage}, 200),
        ({"stream_options": {**usage, "continuous_usage_stats": True}}, 200),
        ({"n": 2}, 200),
        ({"n": 2, "stream_options": usage}, 200),
        ({"stream_options": [1]}, 400),
    ]
    async with simulated(redis_url) as place:
        await place.post(STREAM)
        for options, status in variants:
            body = {**STREAM, **options}
            wanted = await place.post(body, url=place.engine_url, status=status)
            assert _by_choice(await place.post(body, status=status)) == _by_choice(wanted), options


async def test_it_can_be_switched_off(redis_url: str) -> None:
    """Then nothing is read of a stream whose client did not ask."""
    async with simulated(redis_url, ask_usage=False) as place:
        for _ in range(3):
            assert b"usage" not in await place.post(STREAM)
        assert (
            place.count(place.running.metrics.usage_reports, place.endpoint.name, "with_cached")
            == 0
        )


async def test_an_engine_that_reports_to_everybody_is_not_asked(redis_url: str) -> None:
    """The client gets what such an engine sends, and it is read."""
    async with simulated(redis_url, {"force_include_usage": True}) as place:
        await place.post(STREAM, url=place.engine_url)
        for number in range(3):
            wanted = await place.post(STREAM, url=place.engine_url)
            assert b'"usage"' in wanted
            assert await place.post(STREAM) == wanted
            reports = place.running.metrics.usage_reports
            assert place.count(reports, place.endpoint.name, "with_cached") == number + 1
        assert place.endpoint.usage.state == "by_itself"


async def test_an_engine_that_does_not_tell_is_asked_no_more(redis_url: str) -> None:
    """Without details there is nothing to compare; the streams stay what they are."""
    async with simulated(redis_url, {"prompt_tokens_details": False}) as place:
        wanted = await place.post(STREAM, url=place.engine_url)
        for _ in range(6):
            assert await place.post(STREAM) == wanted
        assert place.endpoint.usage.state == "never"
        name, metrics = place.endpoint.name, place.running.metrics
        assert place.count(metrics.usage_reports, name, "without_cached") == 3
        assert sum(place.count(metrics.predictions, name, o) for o in ("exact", "over")) == 0


async def test_what_comes_back_may_be_another_engine(redis_url: str) -> None:
    """After a failure the next stream goes unasked again."""
    async with simulated(redis_url) as place:
        await place.post(STREAM)
        assert place.endpoint.usage.is_worth_asking
        place.endpoint.failed()
        assert not place.endpoint.usage.is_worth_asking


async def learn(place: Place, fake: Upstream) -> None:
    """Let the router see a first stream, so that it asks from then on."""
    behaviour = fake.behaviour

    async def first(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(events_of(TEXT, {**END, "system_fingerprint": "f"}) + DONE)
        await exchange.send(b"0\r\n\r\n")

    fake.behaviour = first
    await place.post(STREAM)
    fake.behaviour = behaviour
    assert place.endpoint.usage.is_worth_asking
    fake.requests.clear()


async def test_what_an_asked_engine_gets(redis_url: str) -> None:
    """One member more at the end, an answer that can be read, and no length that would be wrong."""
    answer = events_of(TEXT, END, LAST) + DONE

    async def with_length(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        await exchange.send(head % len(answer) + answer)

    async with faked(with_length, redis_url) as (fake, place):
        await learn(place, fake)
        raw = json.dumps({**STREAM, "stream_options": {"x": 1}}).encode()
        async with place.session.post(
            place.url + CHAT_PATH, data=raw, headers={"Accept-Encoding": "gzip"}
        ) as reply:
            stamped = events_of(TEXT, {**END, "system_fingerprint": "f"}) + DONE
            assert await reply.read() == stamped
            assert "Content-Length" not in reply.headers
        (request,) = fake.requests
        kept = raw.replace(b', "stream_options": {"x": 1}', b"")
        added = b',"stream_options":{"x":1,"include_usage":true}}'
        assert request.body == kept[:-1] + added
        assert b"accept-encoding: identity" in request.head.lower()
        assert b"gzip" not in request.head


async def test_an_encoded_answer_is_not_touched(redis_url: str) -> None:
    """What an engine compresses against our wish passes as it is."""

    async def encoded(exchange: Exchange) -> None:
        head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: compress\r\n\r\n")
        await exchange.send(head)
        await exchange.chunk(b'\x00"usage" data: [DONE]')
        await exchange.send(b"0\r\n\r\n")

    async with faked(encoded, redis_url) as (fake, place):
        await learn(place, fake)
        async with place.session.post(place.url + CHAT_PATH, json=STREAM) as reply:
            assert await reply.content.read() == b'\x00"usage" data: [DONE]'


async def test_a_break_while_a_chunk_is_held_loses_nothing(redis_url: str) -> None:
    """The held chunk is passed on, then the error; nothing stays behind."""

    async def broken(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(events_of(TEXT))
        await exchange.chunk(events_of(END))
        await asyncio.sleep(0.05)
        exchange.reset()
        raise ConnectionError

    async with faked(broken, redis_url) as (fake, place):
        await learn(place, fake)
        tasks = len(asyncio.all_tasks())
        for _ in range(5):
            head, error = (await place.torn(STREAM)).split(events_of(TEXT, END))
            assert head == b""
            assert b"error" in error
        await place.settled()
        assert (place.endpoint.requests, place.endpoint.queued_tokens) == (0, 0)
        assert place.running.pool.under_way == 0
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) <= tasks + 1


async def test_a_stream_without_its_end_is_counted(redis_url: str) -> None:
    """It passes as it is: a clean end looks complete."""

    async def short(exchange: Exchange) -> None:
        await exchange.send(SSE_HEAD)
        await exchange.chunk(events_of(TEXT))
        await exchange.send(b"0\r\n\r\n")

    async with faked(short, redis_url) as (_, place):
        assert await place.post(STREAM) == MADE_UP.sub(b'"made_up":0', events_of(TEXT))
        assert place.count(place.running.metrics.streams_not_done, place.endpoint.name) == 1


def _by_choice(stream: bytes) -> list[bytes]:
    """Order events of several choices, which come as the engine happens to compute them."""
    return sorted(stream.split(b"\n\n"))

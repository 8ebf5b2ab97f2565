"""Token ids given to engines, and checked afterwards."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from tests.fakes.place import (
    CHAT,
    KNOWN,
    MESSAGES,
    STREAM,
    chat_ids,
    faked,
    simulated,
)
from tests.fakes.upstream import Behaviour, Exchange, plain

pytestmark = pytest.mark.usefixtures("patient")


async def test_answers_are_the_same_with_tokens_handed_over(redis_url: str) -> None:
    """Whole and streamed, with the same cached tokens; and the engine's own check agrees."""
    options: dict[str, Any] = {"token_handover": True, "handover_check_share": 1.0}
    async with simulated(redis_url, **options) as place:
        await place.post(CHAT, url=place.engine_url)
        await place.settled()
        for body in (CHAT, STREAM, {**CHAT, "tools": None}):
            wanted = await place.post(body, url=place.engine_url)
            assert await place.post(body) == wanted
        metrics = place.running.metrics
        assert place.count(metrics.handovers, "m", "handed_over") == 3
        for _ in range(100):
            if place.count(metrics.handover_checks, "m", "agrees") == 3:
                break
            await asyncio.sleep(0.02)
        assert place.count(metrics.handover_checks, "m", "agrees") == 3
        assert place.count(metrics.handover_on, "m") == 1
        assert place.count(metrics.predictions, place.endpoint.name, "exact") >= 2


async def test_what_is_handed_over_is_the_clients_body_and_the_ids(redis_url: str) -> None:
    """One member more at the end, ids that are those of the prompt; the client's own are cut."""
    async with faked(plain(b"{}"), redis_url, token_handover=True) as (fake, place):
        sent = {**CHAT, "kv_transfer_params": {"prompt_token_ids": [1], "do_remote_prefill": True}}
        await place.post(sent)
        await place.post({**CHAT, "echo": True})
        await place.post({"model": "m", "prompt": "hello"}, COMPLETIONS_PATH)
        place.endpoint.facts = replace(KNOWN, version=(0, 27, 1))
        await place.post(CHAT)
        handed, *plain_ones = fake.requests
        ids = chat_ids()
        raw = json.dumps(CHAT).encode()
        member = json.dumps({"prompt_token_ids": ids}, separators=(",", ":")).encode()
        assert handed.body == raw[:-1] + b',"kv_transfer_params":' + member + b"}"
        assert all(b"kv_transfer_params" not in exchange.body for exchange in plain_ones)
        handovers = place.running.metrics.handovers
        for outcome in ("handed_over", "member", "path", "version"):
            assert place.count(handovers, "m", outcome) == 1, outcome
        async with place.session.post(
            f"http://127.0.0.1:{place.running.admin_port}/explain",
            json={"path": CHAT_PATH, "body": CHAT},
        ) as reply:
            assert reply.status == 200
        assert place.count(handovers, "m", "version") == 1


async def test_an_engine_that_refuses_our_ids_is_asked_without(redis_url: str) -> None:
    """The client sees the answer to its own request, be it an error or not."""

    async def picky(exchange: Exchange) -> None:
        if b"prompt_token_ids" in exchange.body:
            await plain(b'{"error": "ours"}', "400 Bad Request")(exchange)
        elif b"teapot" in exchange.body:
            await plain(b'{"error": "yours"}', "400 Bad Request")(exchange)
        else:
            await plain(b'{"choices": []}')(exchange)

    async with faked(picky, redis_url, token_handover=True) as (fake, place):
        assert await place.post(CHAT) == b'{"choices": []}'
        assert await place.post({**CHAT, "user": "teapot"}, status=400) == b'{"error": "yours"}'
        assert len(fake.requests) == 4
        assert place.count(place.running.metrics.handovers, "m", "refused") == 2
        assert place.endpoint.requests == 0


async def test_the_first_difference_ends_the_handover(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """For the model and for good, loudly, and matching stops to trust the endpoint as well."""

    async def other_tokens(exchange: Exchange) -> None:
        is_check = b"/tokenize" in exchange.head
        await plain(b'{"tokens": [1, 2, 3], "count": 3}' if is_check else b'{"choices": []}')(
            exchange
        )

    options: dict[str, Any] = {"token_handover": True, "handover_check_share": 1.0}
    async with faked(other_tokens, redis_url, **options) as (fake, place):
        await place.post({**CHAT, "chat_template_kwargs": {"enable_thinking": False}})
        for _ in range(100):
            if place.endpoint.facts.tokenizer == "differs":
                break
            await asyncio.sleep(0.02)
        assert place.endpoint.facts == replace(KNOWN, tokenizer="differs")
        metrics = place.running.metrics
        assert place.count(metrics.handover_checks, "m", "differs") == 1
        assert place.count(metrics.handover_on, "m") == 0
        asked = json.loads(fake.requests[1].body)
        assert asked == {
            "model": "m",
            "messages": MESSAGES,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        place.endpoint.facts = KNOWN
        await place.post(CHAT)
        assert b"prompt_token_ids" not in fake.requests[-1].body
        assert place.count(metrics.handovers, "m", "stopped") == 1
    assert "handover.stopped" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (plain(b"{}"), "unanswered"),
        (plain(b"[1]"), "unanswered"),
        (plain(b"no json"), "unanswered"),
        (plain(b'{"tokens": "x"}'), "unanswered"),
        (plain(b"{}", "404 Not Found"), "unanswered"),
        (plain(b" " * 2_000_000), "unanswered"),
        (None, "unanswered"),
    ],
)
async def test_a_check_without_an_answer_decides_nothing(
    redis_url: str, answer: Behaviour | None, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be compared is counted, and the handover goes on; silence has a deadline."""
    monkeypatch.setattr(limits, "HANDOVER_CHECK_S", 0.3)
    forever = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        if b"/tokenize" not in exchange.head:
            await plain(b'{"choices": []}')(exchange)
        elif answer is not None:
            await answer(exchange)
        else:
            await forever.wait()

    options: dict[str, Any] = {"token_handover": True, "handover_check_share": 1.0}
    async with faked(behave, redis_url, **options) as (_, place):
        await place.post(CHAT)
        await place.post({**CHAT, "reasoning_effort": "low"})
        checks = place.running.metrics.handover_checks
        for _ in range(100):
            if place.count(checks, "m", outcome):
                break
            await asyncio.sleep(0.02)
        assert place.count(checks, "m", outcome) == 1
        assert place.count(checks, "m", "unanswerable") == 1
        assert place.count(place.running.metrics.handover_on, "m") == 1
        assert place.endpoint.facts == KNOWN
        forever.set()


async def test_checks_are_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fit are dropped and counted; the requests do not wait for them."""
    monkeypatch.setattr(limits, "HANDOVER_CHECK_S", 2.0)
    forever = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        if b"/tokenize" in exchange.head:
            await forever.wait()
        await plain(b'{"choices": []}')(exchange)

    options: dict[str, Any] = {"token_handover": True, "handover_check_share": 1.0}
    async with faked(behave, redis_url, **options) as (_, place):
        for _ in range(limits.HANDOVER_CHECKS_QUEUED_MAX + 5):
            await place.post(CHAT)
        checks = place.running.metrics.handover_checks
        assert place.count(checks, "m", "dropped") >= 3
        forever.set()

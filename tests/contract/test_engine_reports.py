"""What the simulated engine says of tokens, and the token ids and options that it takes."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from tests.contract.test_engine import IDS, SIZE, cached, chat_body, client

USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
async def test_the_fingerprint_stands_where_vllm_puts_it(path: str) -> None:
    """On a whole answer, on the chunk with the usage, and without one on each choice's last one."""
    body = chat_body("Hello", n=2) if path == CHAT_PATH else {"prompt": "Hello", "n": 2}
    body |= {"model": "demo", "max_tokens": 2}
    async with client() as c:
        whole = (await c.post(path, body))[1]
        unasked = await c.stream(path, {**body, "stream": True})
        asked = await c.stream(path, {**body, **USAGE})
    mark = whole["system_fingerprint"]
    assert mark.startswith("vllm-0.32.0")
    for chunk in unasked:
        ends = chunk["choices"][0]["finish_reason"] is not None
        assert chunk.get("system_fingerprint") == (mark if ends else None)
        assert "usage" not in chunk
    assert [chunk.get("system_fingerprint") for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert list(asked[-1]) == [
        *("id", "object", "created", "model", "choices", "usage", "system_fingerprint"),
    ]  # fmt: skip


async def test_usage_with_every_chunk() -> None:
    """On demand, and for everybody where the engine is told so; only the last one has details."""
    async with client() as c:
        chunks = await c.stream(CHAT_PATH, chat_body("Hello", max_tokens=2, **CONTINUOUS))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [0, 1, 2, 2]
    assert [("prompt_tokens_details" in chunk["usage"]) for chunk in chunks] == [False] * 3 + [True]
    async with client(force_include_usage=True) as c:
        forced = await c.stream(CHAT_PATH, chat_body("Hello", max_tokens=2, stream=True))
    assert [chunk["usage"] for chunk in forced] == [chunk["usage"] for chunk in chunks]


async def test_cached_tokens_are_told_only_where_enabled() -> None:
    """Without the option there are no details at all."""
    async with client(prompt_tokens_details=False) as c:
        whole = await c.chat("Hello")
        chunks = await c.stream(CHAT_PATH, chat_body("Hello", **USAGE))
    assert "prompt_tokens_details" not in whole["usage"]
    assert "prompt_tokens_details" not in chunks[-1]["usage"]


async def test_token_ids_stand_for_the_messages() -> None:
    """They are what is computed, cached and announced; null means rendering, echo ignores them."""
    async with client() as c:
        handed = await c.chat("x", kv_transfer_params={"prompt_token_ids": IDS})
        again = await c.complete(IDS)
        none = await c.chat("x", kv_transfer_params={"prompt_token_ids": None})
        echo = await c.chat("x", echo=True, kv_transfer_params={"prompt_token_ids": IDS})
        empty = {**chat_body("x"), "messages": [], "kv_transfer_params": {"prompt_token_ids": IDS}}
        status, _ = await c.post(CHAT_PATH, empty)
        completion = await c.complete("x", kv_transfer_params={"prompt_token_ids": IDS})
        plain = await c.chat("x")
    assert handed["usage"]["prompt_tokens"] == len(IDS)
    assert cached(again) == (len(IDS) - 1) // SIZE * SIZE
    assert none["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert echo["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert completion["usage"]["prompt_tokens"] == 1
    assert status == 200


@pytest.mark.parametrize(
    "ids", [[], "x", {}, [1, "2"], [1, None], [1, True], [1.0], [-1], [10**9], [1] * 40_000]
)
async def test_token_ids_that_are_refused(ids: Any) -> None:
    """As vLLM refuses them, before anything is answered."""
    async with client() as c:
        status, answer = await c.post(
            CHAT_PATH, chat_body("x", stream=True, kv_transfer_params={"prompt_token_ids": ids})
        )
    assert status == 400
    assert answer["error"]["message"]


async def test_hits_are_announced_on_demand() -> None:
    """As stores from the first block on, though nothing was stored; else a hit is silent."""
    async with client() as c:
        await c.complete(IDS)
        before = await c.events()
        await c.complete(IDS)
        assert await c.events() == before
        await c.complete(IDS, vllm_xargs={"kv_cache_report_mode": "full"})
        (again,) = (await c.events())[len(before) :]
    (first,) = before
    assert again == first
    assert again["parent_block_hash"] is None

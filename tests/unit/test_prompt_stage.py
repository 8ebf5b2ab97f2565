"""The prompt stage: within its budget, off the loop when long, and never an error of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest, PromptUnavailable
from kvatlas.common.ids import ModelName
from kvatlas.common.prompt import CHAT_PATH, PromptBuilder, demo_model_path
from kvatlas.common.settings import ModelSettings
from kvatlas.router.prompts import Prompts, match_budget_s

MODEL = ModelName("demo")


@pytest.fixture
def prompts() -> Iterator[Prompts]:
    """Give the stage with the demo model."""
    made = Prompts([ModelSettings(name=MODEL, tokenizer=str(demo_model_path()))])
    yield made
    made.close()


def chat(text: str) -> dict[str, Any]:
    """Write a body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def test_the_budget_grows_with_the_body_up_to_a_bound() -> None:
    """At least that of a thousand tokens; with Redis' part at most a second."""
    assert match_budget_s(0) == limits.MATCH_S_PER_1K_TOKENS
    assert match_budget_s(40_000) == pytest.approx(10 * limits.MATCH_S_PER_1K_TOKENS)
    assert match_budget_s(10**9) + limits.LOOKUP_S == limits.MATCH_S_MAX


@pytest.mark.parametrize("words", [5, 50_000])
async def test_short_and_long_prompts_are_tokenized(prompts: Prompts, words: int) -> None:
    """On the loop or in a thread, with the same ids."""
    body = chat("canal " * words)
    timed = await prompts.token_ids(MODEL, CHAT_PATH, body, 10**8)
    builder = PromptBuilder.load(ModelSettings(name=MODEL, tokenizer=str(demo_model_path())))
    assert timed.prompt == builder.tokenize(builder.prepare(CHAT_PATH, body))
    assert timed.render_ms >= 0
    assert timed.tokenize_ms > 0


async def test_what_takes_too_long_is_given_up(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request goes on by load while the thread ends by itself."""
    release = threading.Event()
    monkeypatch.setattr(PromptBuilder, "tokenize", lambda *_: release.wait(10))
    body = chat("canal " * 20_000)
    with pytest.raises(PromptUnavailable, match="deadline"):
        await prompts.token_ids(MODEL, CHAT_PATH, body, 1_000)
    assert prompts._threads.pending == 1
    release.set()
    prompts._threads.close(waits=True)
    await asyncio.sleep(0.01)
    assert prompts._threads.pending == 0


async def test_a_crowd_is_sent_on_at_once(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more wait for a thread than the bound says."""
    monkeypatch.setattr(limits, "TOKENIZE_PENDING_MAX", 0)
    with pytest.raises(PromptUnavailable, match="busy"):
        await prompts.token_ids(MODEL, CHAT_PATH, chat("canal " * 20_000), 1_000)


@pytest.mark.parametrize("words", [5, 20_000])
async def test_faults_that_nobody_foresaw_are_no_prompt(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    """A bug in a tokenizer costs a match, not a request."""

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PromptBuilder, "tokenize", broken)
    with pytest.raises(PromptUnavailable, match="error"):
        await prompts.token_ids(MODEL, CHAT_PATH, chat("canal " * words), 10**8)


async def test_the_clients_faults_stay_the_clients(prompts: Prompts) -> None:
    """A wrong type is told, not routed."""
    with pytest.raises(InvalidRequest):
        await prompts.token_ids(MODEL, CHAT_PATH, {"model": MODEL, "messages": 7}, 10)

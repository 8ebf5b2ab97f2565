"""Which chats may be handed over as token ids."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvatlas.common.prompt import CHAT_PATH, COMPLETIONS_PATH
from kvatlas.router.endpoints import EngineFacts
from kvatlas.router.handover import Candidate, params, question, refusal

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 10,
    "temperature": 0.5,
    "stream": True,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "chat_template_kwargs": {"enable_thinking": False},
    "cache_salt": "s",
}
FACTS = EngineFacts((0, 32, 0), "agrees", frozenset(), 100)
CHAT = Candidate(CHAT_PATH, BODY, "m", range(90))


def with_body(**fields: Any) -> Candidate:
    """Give a chat with other members."""
    return replace(CHAT, body={**BODY, **fields})


def test_a_chat_whose_members_are_all_known_is_handed_over() -> None:
    """With an engine that is new enough, agrees, and has room for prompt and answer."""
    assert refusal(CHAT, FACTS) is None
    assert refusal(CHAT, replace(FACTS, version=(0, 33))) is None
    assert refusal(CHAT, replace(FACTS, version=(1, 0))) is None


@pytest.mark.parametrize(
    ("candidate", "facts", "reason"),
    [
        (replace(CHAT, path=COMPLETIONS_PATH), FACTS, "path"),
        (CHAT, EngineFacts(), "version"),
        (CHAT, replace(FACTS, version=(0, 31, 9)), "version"),
        (CHAT, replace(FACTS, tokenizer="unknown"), "tokenizer"),
        (CHAT, replace(FACTS, tokenizer="unasked"), "tokenizer"),
        (CHAT, replace(FACTS, tokenizer="differs"), "tokenizer"),
        (replace(CHAT, token_ids=None), FACTS, "prompt"),
        (replace(CHAT, token_ids=[]), FACTS, "prompt"),
        (with_body(model="adapter"), FACTS, "adapter"),
        (with_body(echo=True), FACTS, "member"),
        (with_body(truncate_prompt_tokens=5), FACTS, "member"),
        (with_body(chat_template="{{ x }}"), FACTS, "member"),
        (with_body(prompt_logprobs=0), FACTS, "member"),
        (with_body(return_prompt_text=True), FACTS, "member"),
        (with_body(mm_processor_kwargs={}), FACTS, "member"),
        (with_body(vllm_xargs={"a": 1}), FACTS, "member"),
        (with_body(something_unheard_of=1), FACTS, "member"),
        (with_body(tool_choice="none"), FACTS, "tools"),
        (with_body(messages=[]), FACTS, "messages"),
        (with_body(messages=None), FACTS, "messages"),
        (with_body(max_tokens=11), FACTS, "length"),
        (with_body(max_completion_tokens=11), FACTS, "length"),
        (with_body(max_tokens=None), replace(FACTS, max_model_len=90), "length"),
        (with_body(max_tokens="10"), FACTS, "length"),
        (with_body(max_tokens=True), FACTS, "length"),
        (CHAT, replace(FACTS, max_model_len=None), "length"),
    ],
)
def test_what_is_not_handed_over(candidate: Candidate, facts: EngineFacts, reason: str) -> None:
    """Everything that the engine would ignore, skip or judge itself, and all that is unknown."""
    assert refusal(candidate, facts) == reason


@pytest.mark.parametrize(
    "candidate",
    [
        with_body(echo=False, truncate_prompt_tokens=None, something_unheard_of=None),
        with_body(tool_choice="none", tools=None),
        with_body(tool_choice="auto"),
        with_body(max_completion_tokens=5, max_tokens=50),
        with_body(max_tokens=0),
    ],
)
def test_members_that_say_nothing(candidate: Candidate) -> None:
    """Null and false are as if they were not there."""
    assert refusal(candidate, FACTS) is None


def test_the_ids_are_written_as_the_engine_reads_them() -> None:
    """One member in one object."""
    assert json.loads(params(range(3))) == {"prompt_token_ids": [0, 1, 2]}


def test_the_question_for_tokenize() -> None:
    """All that makes the prompt and nothing else; none where the engine would not look at it."""
    asked = question({**BODY, "add_generation_prompt": True})
    assert asked is not None
    assert set(json.loads(asked)) == {
        "model", "messages", "tools", "chat_template_kwargs", "add_generation_prompt",
    }  # fmt: skip
    for name in ("reasoning_effort", "documents", "tool_choice"):
        assert question({**BODY, name: "x"}) is None
        assert question({**BODY, name: None}) == question(BODY)

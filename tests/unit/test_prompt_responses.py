"""Responses as the chat that the engine makes of them; compared with vLLM 0.32's source by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt import CHAT_PATH, RESPONSES_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.responses import chat_of
from kvatlas.common.settings import ModelSettings


def test_a_text_and_messages_become_a_chat() -> None:
    """With the instructions in front, and parts in the words of chats."""
    said = [{"type": "output_text", "text": "b", "annotations": []}]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": said, "status": "completed", "id": "m"},
        {"role": "user", "content": "c"},
    ]
    assert chat_of({"input": "a", "instructions": "i", "max_output_tokens": 3}) == {
        "model": None,
        "messages": [{"role": "system", "content": "i"}, {"role": "user", "content": "a"}],
        "max_tokens": 3,
    }
    assert chat_of({"input": items, "store": True, "tools": [], "reasoning": None})["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "refused"),
        ({"input": ["a"]}, "refused"),
        ({"input": "a", "instructions": 1}, "refused"),
        ({"input": "a", "previous_response_id": "resp_1"}, "stored"),
        ({"input": "a", "tools": [{"type": "function"}]}, "unsure"),
        ({"input": "a", "reasoning": {"effort": "low"}}, "unsure"),
        ({"input": "a", "truncation": "auto"}, "unsure"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "unsure"),
        ({"input": [{"role": "developer", "content": "x"}]}, "unsure"),
        ({"input": [{"role": "user", "content": []}]}, "unsure"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "unsure"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "multimodal"),
        ({"input": [{"role": "assistant", "content": "x", "status": "incomplete"}]}, "unsure"),
        ({"input": [{"role": "assistant", "content": [{}, {}]}]}, "unsure"),
    ],
)
def test_what_is_not_rendered_here(body: dict[str, Any], reason: str) -> None:
    """Goes by load, and never wrong."""
    with pytest.raises(PromptUnavailable) as caught:
        chat_of(body)
    assert caught.value.reason == reason


def test_the_tokens_are_those_of_the_chat() -> None:
    """A conversation has the same blocks whichever API it comes by."""
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(demo_model_path())))
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    plain = builder.tokenize(builder.prepare(CHAT_PATH, {"messages": messages}))
    body = {"input": "hello", "instructions": "s", "cache_salt": "x"}
    ours = builder.tokenize(builder.prepare(RESPONSES_PATH, body))
    assert (ours.sequences, ours.cache_salt) == (plain.sequences, "x")

"""Responses as the chat that the engine makes of them; compared with vLLM 0.32's source by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt import CHAT_PATH, RESPONSES_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.responses import chat_of
from kvatlas.common.prompt.tools import tool_calls_of
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


SAID = {"type": "output_text", "text": "b"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
GIVEN = {"type": "function_call_output", "call_id": "c", "output": "o"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]}
SUMMARY = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}
TOOL = {"type": "function", "name": "f", "parameters": {}}


def messages_of(*items: Any) -> Any:
    """Translate items."""
    return chat_of({"input": list(items)})["messages"]


def test_what_an_assistant_did_becomes_one_message() -> None:
    """Reasoning, words and calls in any order, until one of them is there already."""
    function = {"name": "f", "arguments": "{}"}
    call = {"id": "c", "type": "function", "function": function}
    said = {"type": "message", "role": "assistant", "content": [SAID]}
    assert messages_of(THOUGHT, said, CALL, CALL) == [
        {"role": "assistant", "reasoning": "t", "content": "b", "tool_calls": [call, call]}
    ]
    assert messages_of(said, said, SUMMARY) == [
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "b", "reasoning": "s"},
    ]
    assert messages_of(CALL, GIVEN, {"type": "reasoning", "summary": []}) == [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "o", "tool_call_id": "c"},
        {"role": "assistant", "reasoning": ""},
    ]


def test_results_may_come_in_parts() -> None:
    """Of text, as those of chats."""
    part = {"type": "input_text", "text": "o"}
    (message,) = messages_of({**GIVEN, "output": [part]})
    assert message["content"] == [{"type": "text", "text": "o"}]


def test_functions_and_effort_are_those_of_a_chat() -> None:
    """A named choice too; tools that are none are none."""
    chat = chat_of(
        {
            "input": "a",
            "tools": [TOOL],
            "tool_choice": {"type": "function", "name": "f"},
            "reasoning": {"effort": "low", "summary": "auto"},
            "chat_template_kwargs": {"x": 1},
            "truncation": "disabled",
        }
    )
    assert chat["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert (chat["reasoning_effort"], chat["chat_template_kwargs"]) == ("low", {"x": 1})
    assert chat_of({"input": "a", "tools": [TOOL]})["tool_choice"] == "auto"
    plain = chat_of({"input": "a", "tool_choice": "auto", "reasoning": {"summary": "auto"}})
    assert plain.keys() == {"model", "messages"}


def test_a_called_function_keeps_its_keys_in_order() -> None:
    """The engine makes it itself, so that no type of its own puts the arguments first."""
    (made,) = tool_calls_of(messages_of(CALL)[0])
    assert list(made["function"]) == ["name", "arguments"]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (given,) = tool_calls_of({"tool_calls": [call]})
    assert list(given["function"]) == ["arguments", "name"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "refused"),
        ({"input": ["a"]}, "refused"),
        ({"input": "a", "instructions": 1}, "refused"),
        ({"input": "a", "previous_response_id": "resp_1"}, "stored"),
        ({"input": "a", "tools": [1]}, "refused"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "unsure"),
        ({"input": "a", "tool_choice": "required"}, "refused"),
        ({"input": "a", "tools": [TOOL], "tool_choice": {"type": "custom", "name": "f"}}, "unsure"),
        ({"input": "a", "tools": [TOOL], "tool_choice": {"type": "function"}}, "unsure"),
        ({"input": "a", "reasoning": "low"}, "refused"),
        ({"input": "a", "reasoning": {"context": "x"}}, "unsure"),
        ({"input": "a", "truncation": "auto"}, "unsure"),
        ({"input": "a", "prompt": {"id": "x"}}, "unsure"),
        ({"input": [{**GIVEN, "call_id": 1}]}, "unsure"),
        ({"input": [{**GIVEN, "output": []}]}, "unsure"),
        ({"input": [{**GIVEN, "output": [{"type": "input_image"}]}]}, "unsure"),
        ({"input": [{**CALL, "namespace": "n"}]}, "unsure"),
        ({"input": [{**CALL, "arguments": {}}]}, "unsure"),
        ({"input": [{**THOUGHT, "summary": None}]}, "unsure"),
        ({"input": [{**THOUGHT, "content": "x"}]}, "unsure"),
        ({"input": [{**THOUGHT, "encrypted_content": "x"}]}, "refused"),
        ({"input": [{"type": ["message"]}]}, "unsure"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsure"),
        ({"input": [{"role": "tool", "content": "x"}]}, "unsure"),
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

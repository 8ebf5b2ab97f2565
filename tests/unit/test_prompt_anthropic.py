"""Messages as the chat that the engine makes of them; compared with vLLM 0.32's source by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kvatlas.common.errors import PromptUnavailable
from kvatlas.common.prompt import CHAT_PATH, MESSAGES_PATH, PromptBuilder, demo_model_path
from kvatlas.common.prompt.anthropic import chat_of
from kvatlas.common.settings import ModelSettings

USER = {"role": "user", "content": "hello"}


def asked(**members: Any) -> dict[str, Any]:
    """Write a request."""
    return {"model": "m", "max_tokens": 5, "messages": [USER], **members}


def messages_of(content: Any, role: str = "user", **members: Any) -> Any:
    """Translate one message."""
    return chat_of(asked(messages=[{"role": role, "content": content}], **members))["messages"]


def test_texts_stay_texts() -> None:
    """One block is its text, several stay parts, empty ones and a user's empty message go."""
    block = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    assert messages_of("a") == [{"role": "user", "content": "a"}]
    assert messages_of([block]) == [{"role": "user", "content": "a"}]
    part = {"type": "text", "text": "a"}
    assert messages_of([block, block]) == [{"role": "user", "content": [part, part]}]
    assert messages_of([{"type": "text", "text": ""}]) == []
    assert messages_of([], "assistant") == [{"role": "assistant"}]


def test_the_system_prompt_comes_first_and_without_the_billing_header() -> None:
    """Which differs with every request, so that the engine leaves it out."""
    blocks = [{"type": "text", "text": t} for t in ("x-anthropic-billing-header: 1", "be ", "kind")]
    assert messages_of("a", system=blocks)[0] == {"role": "system", "content": "be kind"}
    assert messages_of("a", system="be kind")[0] == {"role": "system", "content": "be kind"}
    assert len(messages_of("a", system="")) == 1


def test_tool_calls_and_results() -> None:
    """Results become messages of their own, before the user's text."""
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"x": "ü"}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    function = {"name": "f", "arguments": '{"x": "\\u00fc"}'}
    assert messages_of([thought, use], "assistant") == [
        {
            "role": "assistant",
            "reasoning": "hm",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        }
    ]
    lines = [{"type": "text", "text": t} for t in "ab"]
    result = {"type": "tool_result", "tool_use_id": "c", "content": lines}
    assert messages_of([{"type": "text", "text": "so?"}, result]) == [
        {"role": "tool", "tool_call_id": "c", "content": "a\nb"},
        {"role": "user", "content": "so?"},
    ]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (None, "auto"),
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tools(given: Any, made: Any) -> None:
    """With a type for the schema where it has none."""
    tool = {"name": "f", "input_schema": {"properties": {}}}
    chat = chat_of(asked(tools=[tool], tool_choice=given))
    assert chat["tool_choice"] == made
    assert chat["tools"][0]["function"] == {
        "name": "f",
        "description": None,
        "parameters": {"properties": {}, "type": "object"},
        "strict": None,
        "defer_loading": None,
    }


def test_effort_passes_and_a_budget_changes_nothing() -> None:
    """As the engine has it."""
    thinking = {"type": "enabled", "budget_tokens": 2_000}
    chat = chat_of(asked(output_config={"effort": "low"}, thinking=thinking))
    assert chat["reasoning_effort"] == "low"
    assert "reasoning_effort" not in chat_of(asked(thinking=thinking))


IMAGE = {"type": "image", "source": {"type": "base64", "data": ""}}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"max_tokens": None}, "refused"),
        ({"messages": "a"}, "refused"),
        ({"messages": ["a"]}, "refused"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "refused"),
        ({"messages": [{"role": "user"}]}, "refused"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "refused"),
        ({"messages": [{"role": "system", "content": "a"}]}, "unsure"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "unsure"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "unsure"),
        ({"system": [{"type": "text", "text": 1}]}, "refused"),
        ({"thinking": {"type": "disabled"}}, "unsure"),
        ({"tool_choice": {"type": "auto"}}, "unsure"),
        ({"tools": []}, "unsure"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "refused"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "x"}}, "refused"),
    ],
)
def test_what_is_not_rendered_here(members: dict[str, Any], reason: str) -> None:
    """Goes by load, and never wrong."""
    with pytest.raises(PromptUnavailable) as caught:
        chat_of(asked(**members))
    assert caught.value.reason == reason


def test_results_with_images_are_not_rendered() -> None:
    """They become messages of their own."""
    result = {"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}
    with pytest.raises(PromptUnavailable, match="multimodal"):
        messages_of([result])


def test_the_tokens_are_those_of_the_chat() -> None:
    """A conversation has the same blocks whichever API it comes by."""
    builder = PromptBuilder.load(ModelSettings(name="m", tokenizer=str(demo_model_path())))
    messages = [USER, {"role": "assistant", "content": "yes"}, USER]
    chat = {"messages": [{"role": "system", "content": "s"}, *messages], "max_tokens": 5}
    plain = builder.tokenize(builder.prepare(CHAT_PATH, chat))
    ours = builder.tokenize(
        builder.prepare(MESSAGES_PATH, asked(messages=messages, system="s", cache_salt="x"))
    )
    assert ours.sequences == plain.sequences
    assert ours.cache_salt == "x"

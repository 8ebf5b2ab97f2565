"""No body, however odd, gets anything out of the prompt code but ids or one of two errors."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvatlas.common.errors import InvalidRequest, PromptUnavailable
from kvatlas.common.prompt import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    REASONS,
    PromptBuilder,
    demo_model_path,
)
from kvatlas.common.settings import ModelSettings

BUILDER = PromptBuilder.load(ModelSettings(name="demo", tokenizer=str(demo_model_path())))

SURROGATES = st.text(st.characters(exclude_categories=()), max_size=20)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SURROGATES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SURROGATES, inner, max_size=4),
    max_leaves=12,
)


def mostly(*likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw what is likely in a field, and sometimes anything."""
    return st.one_of(*likely, *likely, JSON)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw an object with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


FUNCTION = record(
    name=mostly(st.just("f")),
    description=JSON,
    parameters=mostly(st.just({"type": "object"})),
    arguments=mostly(st.sampled_from(["{}", '{"a": [1]}', "", "x", '{"a": "\\ud800"}'])),
    strict=JSON,
)
CALL = record(id=JSON, type=mostly(st.just("function")), function=mostly(FUNCTION))
PART = record(
    type=mostly(st.sampled_from(["text", "image_url", "refusal"])), text=mostly(SURROGATES)
)
MESSAGE = record(
    role=mostly(st.sampled_from(["system", "user", "assistant", "tool", "developer"])),
    content=mostly(SURROGATES, st.lists(mostly(PART), max_size=3)),
    tool_calls=mostly(st.lists(mostly(CALL), max_size=2)),
    reasoning=JSON,
    reasoning_content=JSON,
    tool_call_id=JSON,
    name=JSON,
)
COMMON = {
    "model": mostly(st.just("demo")),
    "stream": mostly(st.booleans()),
    "cache_salt": JSON,
    "truncate_prompt_tokens": mostly(st.integers(-3, 9)),
    "truncation_side": mostly(st.sampled_from(["left", "right"])),
    "add_special_tokens": mostly(st.booleans()),
    "prompt_embeds": JSON,
}
CHAT = record(
    messages=mostly(st.lists(mostly(MESSAGE), max_size=4)),
    tools=mostly(st.lists(mostly(record(type=JSON, function=mostly(FUNCTION))), max_size=2)),
    tool_choice=JSON,
    documents=JSON,
    chat_template=JSON,
    chat_template_kwargs=mostly(
        record(enable_thinking=JSON, loop=JSON, namespace=JSON, tools=JSON, raise_exception=JSON)
    ),
    reasoning_effort=mostly(st.sampled_from(["none", "low"])),
    add_generation_prompt=mostly(st.booleans()),
    continue_final_message=mostly(st.booleans()),
    kv_transfer_params=JSON,
    **COMMON,
)
COMPLETION = record(
    prompt=mostly(
        SURROGATES,
        st.lists(SURROGATES, max_size=3),
        st.lists(st.integers(-1, 9_000), max_size=5),
        st.lists(st.lists(st.integers(0, 9_000), max_size=3), max_size=3),
    ),
    suffix=JSON,
    **COMMON,
)


def survives(path: str, body: dict[str, Any]) -> None:
    """Check that a body gives token ids of the vocabulary, or one of the two errors."""
    try:
        prompt = BUILDER.tokenize(BUILDER.prepare(path, body))
    except (InvalidRequest, PromptUnavailable) as error:
        told = error.param if isinstance(error, InvalidRequest) else error.reason
    else:
        assert prompt.sequences
        assert all(0 <= token < BUILDER.vocab_size for ids in prompt.sequences for token in ids)
        return
    assert told in ("model", "stream", "messages", "prompt", *REASONS)


@settings(max_examples=200, deadline=None)
@given(CHAT)
def test_any_chat(body: dict[str, Any]) -> None:
    """A chat of any shape gives ids, InvalidRequest, or PromptUnavailable with a known reason."""
    survives(CHAT_PATH, body)


@settings(max_examples=100, deadline=None)
@given(COMPLETION)
def test_any_completion(body: dict[str, Any]) -> None:
    """So does a completion."""
    survives(COMPLETIONS_PATH, body)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "tools"]), JSON))
def test_anything_at_all(body: dict[str, Any]) -> None:
    """So does what is no request by any measure."""
    survives(CHAT_PATH, body)
    survives(COMPLETIONS_PATH, body)


def test_deep_nesting() -> None:
    """Values nested deeper than Python can follow are no exception."""
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": deep}}}
    survives(CHAT_PATH, {"messages": [{"role": "user", "content": "x"}], "tools": [tool]})
    survives(CHAT_PATH, {"messages": [{"role": "user", "content": deep}]})
    survives(COMPLETIONS_PATH, {"prompt": deep})


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_text_reads_back(text: str) -> None:
    """Any text without special tokens comes out of the demo model's tokens as it went in."""
    if "<|" not in text:
        assert BUILDER.decode(BUILDER.encode_text(text, add_special_tokens=False)) == text

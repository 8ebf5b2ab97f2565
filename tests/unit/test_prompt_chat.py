"""How a chat is normalised: a template that prints its variables shows what it was given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest, PromptUnavailable
from kvatlas.common.prompt.chat import ChatRenderer
from kvatlas.common.prompt.rendered import Rendered, Truncation
from kvatlas.common.prompt.special_tokens import SpecialTokens
from kvatlas.common.prompt.template import ChatTemplate

MESSAGES = "{{ messages | tojson }}"
OPENAI = "{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}" + MESSAGES
USER = {"role": "user", "content": "u"}
TEXT = {"type": "text", "text": "x"}
THOUGHT = {"type": "thinking", "thinking": "x"}
NAMED = {"name": "f"}


def renderer(source: str = MESSAGES, **options: Any) -> ChatRenderer:
    """Make a renderer with one template."""
    return ChatRenderer({"default": ChatTemplate.compile(source, "test")}, **options)


def text(body: dict[str, Any], source: str = MESSAGES, **options: Any) -> str:
    """Render a body to text."""
    [rendered] = renderer(source, **options).render(body).texts
    return rendered


def seen(*messages: Any, source: str = MESSAGES) -> list[dict[str, Any]]:
    """Give the messages as the template sees them, with keys in its order."""
    shown = json.loads(text({"messages": list(messages)}, source))
    assert isinstance(shown, list)
    return shown


def items(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Compare a message together with the order of its keys."""
    return list(message.items())


def reason(body: dict[str, Any], source: str = MESSAGES, **options: Any) -> str:
    """Give the reason why a body is not rendered."""
    with pytest.raises(PromptUnavailable) as caught:
        renderer(source, **options).render(body)
    return caught.value.reason


# --- messages -----------------------------------------------------------------------------------


def test_unknown_keys_are_dropped_and_the_order_is_ours() -> None:
    """Only known keys reach the template, role and content first."""
    [message] = seen({"weird": 1, "name": "bob", "content": "x", "role": "user"})
    assert items(message) == [("role", "user"), ("content", "x"), ("name", "bob")]


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None}])
def test_missing_content_is_empty(message: dict[str, Any]) -> None:
    """Content that is null or absent is an empty string, or an empty list of parts."""
    assert seen(message)[0]["content"] == ""
    assert seen(message, source=OPENAI)[0]["content"] == []


def test_parts_are_joined_by_line_ends() -> None:
    """A template for strings gets parts of text joined by line ends."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert seen({"role": "user", "content": parts})[0]["content"] == "a\nb"


def test_a_template_that_loops_over_parts_gets_parts() -> None:
    """Text is wrapped into a part; a part's further keys stay, behind type and text."""
    assert seen(USER, source=OPENAI)[0]["content"] == [{"type": "text", "text": "u"}]
    part = {"cache_control": {"type": "ephemeral"}, "text": "a", "type": "text"}
    [message] = seen({"role": "user", "content": [part]}, source=OPENAI)
    assert list(message["content"][0]) == ["type", "text", "cache_control"]


def test_the_configured_content_format_wins() -> None:
    """What the operator says beats what the template looks like."""
    shown = json.loads(text({"messages": [USER]}, MESSAGES, content_format="openai"))
    assert shown[0]["content"] == [{"type": "text", "text": "u"}]


def test_a_tools_answer_is_always_a_string() -> None:
    """Even a template for parts gets one string from a tool."""
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "3"}]
    message = {"role": "tool", "tool_call_id": "c", "content": parts, "weird": [{}]}
    [shown] = seen(message, source=MESSAGES + "{# {% #}")
    assert items(shown) == [("role", "tool"), ("content", "2\n3"), ("tool_call_id", "c")]
    [shown] = json.loads(text({"messages": [message]}, content_format="openai"))
    assert shown["content"] == "2\n3"


@pytest.mark.parametrize("given", [{"reasoning": "r"}, {"reasoning_content": "r"}])
def test_reasoning_has_both_names(given: dict[str, str]) -> None:
    """Templates find reasoning under either name, whichever one the client used."""
    [message] = seen({"role": "assistant", "content": "x", **given})
    assert items(message)[2:] == [("reasoning", "r"), ("reasoning_content", "r")]


def test_reasoning_of_others_is_dropped() -> None:
    """Only assistants reason."""
    assert "reasoning" not in seen({"role": "user", "content": "x", "reasoning": "r"})[0]


def test_a_billing_line_is_dropped() -> None:
    """The first line of a system prompt that changes with every request is not rendered."""
    header = "x-anthropic-billing-header: 17"
    assert seen({"role": "system", "content": f"{header}\nyou are"})[0]["content"] == "you are"
    assert seen({"role": "system", "content": header})[0]["content"] == ""
    assert seen({"role": "user", "content": f"{header}\nx"})[0]["content"] == f"{header}\nx"


def test_developer_becomes_system_and_systems_merge() -> None:
    """Where a template knows no developer, all system messages are merged at the front."""
    shown = seen(
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        USER,
        {"role": "system", "content": "c"},
    )
    assert shown == [{"role": "system", "content": "a\n\nb\n\nc"}, USER]


def test_developer_stays_where_the_template_knows_it() -> None:
    """A template that names the role in quotes gets it, with its tools."""
    source = "{% if messages[0].role == 'developer' %}{% endif %}" + MESSAGES
    shown = seen({"role": "developer", "content": "b"}, source=source)
    assert shown == [{"role": "developer", "content": "b", "tools": None}]


def test_system_messages_alone_are_not_merged() -> None:
    """Without a developer message every system message stays where it is."""
    messages = [{"role": "system", "content": "a"}, USER, {"role": "system", "content": "b"}]
    assert seen(*messages) == messages


def test_merged_systems_are_strings() -> None:
    """Parts are joined for the merged message, and what is empty is left out of it."""
    messages: list[dict[str, Any]] = [
        {
            "role": "system",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "developer", "content": "", "name": "n"},
        {"role": "developer", "content": "c"},
    ]
    assert seen(*messages, source=OPENAI) == [{"role": "system", "content": "a\nb\n\nc"}]
    alone = seen({"role": "developer", "content": "c", "name": "n", "tools": []}, source=OPENAI)
    assert alone == [{"role": "system", "content": [{"type": "text", "text": "c"}], "name": "n"}]


def test_tools_of_a_developer() -> None:
    """Tools that fit the engine's type are put in its order; anything else stays as it is."""
    source = "{# 'developer' #}" + MESSAGES
    function = {"extra": 1, "strict": True, "parameters": {"b": 1}, "name": "f"}
    tools: list[Any] = [{"more": 2, "type": "function", "function": function}]
    [shown] = seen({"role": "developer", "content": "c", "tools": tools}, source=source)
    [tool] = shown["tools"]
    assert list(tool) == ["function", "type", "more"]
    assert list(tool["function"]) == ["name", "parameters", "strict", "extra"]
    # Where another key keeps the message from fitting that type, its tools stay, too.
    [shown] = seen({"role": "developer", "content": "c", "tools": tools, "task": 1}, source=source)
    assert list(shown["tools"][0]) == ["more", "type", "function"]
    odd = [{"type": "function", "function": {"name": "f", "description": None}}]
    [shown] = seen({"role": "developer", "content": "c", "tools": odd}, source=source)
    assert list(shown["tools"][0]) == ["type", "function"]


@pytest.mark.parametrize("messages", [None, {}, "x", 7, ["x"], [USER, None]])
def test_wrong_types_are_the_clients_fault(messages: Any) -> None:
    """Messages that are no list of objects are answered 400."""
    with pytest.raises(InvalidRequest) as caught:
        renderer().render({"messages": messages})
    assert caught.value.param == "messages"


def test_a_model_that_is_no_name_is_too() -> None:
    """So is the name of the model, which the router reads; null is none."""
    with pytest.raises(InvalidRequest) as caught:
        renderer().render({"messages": [USER], "model": 7})
    assert caught.value.param == "model"
    assert renderer("x").render({"messages": [USER], "model": None}).texts == ("x",)


@pytest.mark.parametrize(("stream", "taken"), [("yes", True), (1, True), (None, True), (2, False)])
def test_stream_is_read_as_the_engine_reads_it(stream: Any, taken: bool) -> None:  # noqa: FBT001
    """What the engine takes for a boolean is no fault of the client's; the rest it refuses."""
    body = {"messages": [USER], "stream": stream}
    if taken:
        assert renderer("x").render(body).texts == ("x",)
    else:
        assert reason(body, "x") == "refused"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({}, "refused"),
        ({"role": 1}, "refused"),
        ({"role": "user", "content": 7}, "refused"),
        ({"role": "user", "content": ["bare"]}, "refused"),
        ({"role": "user", "content": [{"type": "text"}]}, "refused"),
        ({"role": "user", "content": [{"type": ["text"], "text": "x"}]}, "refused"),
        ({"role": "user", "content": None}, "refused"),
        ({"role": "user", "content": [{"type": "input_text", "text": "x"}]}, "refused"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {}]}, "refused"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "uuid": "u"}]}, "refused"),
        ({"role": "user", "content": [TEXT, {"type": "text", "text": 1}]}, "unsure"),
        ({"role": "user", "content": [TEXT], "reasoning": 1}, "unsure"),
        ({"role": "user", "content": [{**THOUGHT, "closed": "x"}]}, "refused"),
        ({"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {}}]}, "multimodal"),
        ({"role": "user", "content": [TEXT, {"image_url": None, "uuid": "u"}]}, "multimodal"),
        ({"role": "user", "content": "x", "name": 1}, "refused"),
        ({"role": "wizard", "content": "x", "reasoning": 1}, "refused"),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "refused"),
        ({"role": "assistant", "content": "x", "tool_calls": 1}, "refused"),
        ({"role": "assistant", "reasoning": 1e20}, "unsure"),
        ({"role": "user", "content": "\ud800"}, "encoding"),
    ],
)
def test_messages_that_are_not_rendered(message: dict[str, Any], why: str) -> None:
    """What the engine refuses, or renders in ways that are not known here, goes by load."""
    assert reason({"messages": [message]}, "{{ messages[0].content }}") == why


def test_no_messages() -> None:
    """The engine refuses a chat without messages by itself."""
    assert reason({"messages": []}) == "refused"
    assert reason({}) == "refused"


def test_bounds() -> None:
    """Too many messages, or characters, mean routing by load."""
    assert reason({"messages": [USER] * (limits.MESSAGES_MAX + 1)}) == "too_many_messages"
    half = {"role": "user", "content": "x" * (limits.PROMPT_CHARS_MAX // 2 + 1)}
    assert reason({"messages": [half, half]}) == "too_long"
    grows = "{% for m in messages * 3 %}{{ m.content }}{% endfor %}"
    assert reason({"messages": [half]}, grows) == "too_long"


# --- tools --------------------------------------------------------------------------------------


def test_tools_are_written_in_the_engines_order() -> None:
    """Unknown keys go, nulls of the first three stay, strict only shows when it is given."""
    tools = [
        {
            "x": 1,
            "function": {"strict": True, "parameters": {"b": 1, "a": 2}, "name": "f", "y": 1},
            "type": "function",
        },
        {"type": "function", "function": {"name": "g", "strict": None}},
    ]
    assert text({"messages": [USER], "tools": tools}, "{{ tools | tojson }}") == (
        '[{"type": "function", "function": {"name": "f", "description": null, '
        '"parameters": {"b": 1, "a": 2}, "strict": true}}, {"type": "function", '
        '"function": {"name": "g", "description": null, "parameters": null}}]'
    )


def test_tools_are_none_without_tools() -> None:
    """The variable is always there, and tools are rendered with tool_choice none as well."""
    source = "{{ tools is none }} {{ documents is none }}"
    assert text({"messages": [USER]}, source) == "True True"
    body = {"messages": [USER], "tools": [{"function": {"name": "f"}}], "tool_choice": "none"}
    assert text(body, source) == "False True"


@pytest.mark.parametrize(
    "change",
    [
        {"tools": []},
        {"tools": {}},
        {"tools": ["x"]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "other", "function": {"name": "f"}}]},
        {"tools": [{"function": {"name": 1}}]},
        {"tools": [{"function": {"name": "f", "description": 1}}]},
        {"tools": [{"function": {"name": "f", "parameters": []}}]},
        {"tool_choice": "required"},
    ],
)
def test_tools_that_the_engine_refuses(change: dict[str, Any]) -> None:
    """Odd tools are the engine's to answer."""
    assert reason({"messages": [USER], **change}) == "refused"


def test_the_template_for_tools_is_used_with_tools() -> None:
    """A template called tool_use serves requests with tools, the default all others."""
    plain, tool_use = (ChatTemplate.compile(name, "test") for name in ("plain", "with tools"))
    both = ChatRenderer({"default": plain, "tool_use": tool_use})
    body = {"messages": [USER], "tools": [{"function": {"name": "f"}}]}
    assert both.render(body).texts == ("with tools",)
    assert both.render({"messages": [USER]}).texts == ("plain",)


def test_no_template() -> None:
    """A model without a template has no chats here."""
    with pytest.raises(PromptUnavailable) as caught:
        ChatRenderer({}).render({"messages": [USER]})
    assert caught.value.reason == "no_template"


CALL = {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def call(arguments: Any) -> dict[str, Any]:
    """Make an assistant's message with one tool call, its keys out of order."""
    function = {"name": "f", "arguments": arguments, "extra": 1}
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function, "id": "i"}],
    }


def test_tool_calls_are_written_in_the_engines_order() -> None:
    """Id, function with arguments first, type, and then the rest."""
    [message] = seen(call('{"b": 1.0, "a": [true, null]}'))
    assert json.dumps(message["tool_calls"][0]) == (
        '{"id": "i", "function": {"arguments": {"b": 1.0, "a": [true, null]}, "name": "f", '
        '"extra": 1}, "type": "function"}'
    )


@pytest.mark.parametrize("arguments", ["", "not json", "[1, 2]", "7", '{"a": 1} x'])
def test_arguments_that_are_no_object_are_empty(arguments: Any) -> None:
    """Whatever a model wrote as arguments, the template gets an object."""
    [message] = seen(call(arguments))
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("calls", [[], None])
def test_empty_tool_calls_are_dropped(calls: Any) -> None:
    """The key is absent where there are no calls."""
    [message] = seen({"role": "assistant", "content": "x", "tool_calls": calls})
    assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ("x", "refused"),
        (["x"], "refused"),
        ([{}], "refused"),
        ([{"type": "custom", "id": "i", "custom": {}}], "refused"),
        ([{**CALL, "id": None}], "refused"),
        ([{**CALL, "function": {"name": "f"}}], "refused"),
        ([{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}], "refused"),
        ([{**CALL, "function": {"name": "f", "arguments": "[" * 200_000}}], "refused"),
        ([{**CALL, "function": {"name": "f", "arguments": "1" * 5_000}}], "refused"),
    ],
)
def test_tool_calls_that_are_not_rendered(calls: Any, why: str) -> None:
    """Arguments given as an object, among others, are refused by the engine."""
    assert reason({"messages": [{"role": "assistant", "tool_calls": calls}]}) == why


# --- variables ----------------------------------------------------------------------------------


def test_generation_prompt() -> None:
    """On by default, and the request's own field beats the template's arguments."""
    source = "{{ add_generation_prompt }}"
    arguments = {"chat_template_kwargs": {"add_generation_prompt": False}}
    assert text({"messages": [USER]}, source) == "True"
    assert text({"messages": [USER], **arguments}, source) == "True"
    assert text({"messages": [USER], "add_generation_prompt": False}, source) == "False"


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, "undefined undefined"),
        ({"reasoning_effort": "none"}, "none False"),
        ({"reasoning_effort": "low"}, "low True"),
        ({"reasoning_effort": None}, "undefined undefined"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "none True",
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "undefined False"),
    ],
)
def test_reasoning_effort_sets_thinking(change: dict[str, Any], shown: str) -> None:
    """The effort is a variable and switches thinking unless the client did so itself."""
    source = (
        "{{ reasoning_effort | default('undefined') }} {{ enable_thinking | default('undefined') }}"
    )
    assert text({"messages": [USER], **change}, source) == shown


def test_special_tokens_are_variables() -> None:
    """Those that exist are defined, the others are not; the client may override them."""
    source = "{{ bos_token is defined }} {{ eos_token }}"
    tokens = {"eos_token": "<e>"}
    assert text({"messages": [USER]}, source, special_tokens=SpecialTokens(tokens)) == "False <e>"
    body = {"messages": [USER], "chat_template_kwargs": {"eos_token": "<x>"}}
    assert text(body, source, special_tokens=SpecialTokens(tokens)) == "False <x>"


def test_unread_variables_do_not_reach_the_template() -> None:
    """Names that the template does not read are dropped, however they are called."""
    source = "{% set mine = 1 %}{{ mine }}{{ yours is defined }}"
    body = {"messages": [USER], "chat_template_kwargs": {"mine": 2, "unknown": 3}}
    assert text(body, source) == "1False"


def test_documents() -> None:
    """Documents are handed through."""
    body = {"messages": [USER], "documents": [{"title": "t"}]}
    assert text(body, "{{ documents[0].title }}") == "t"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chat_template": "{{ 1 }}"}, "request_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "request_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "unsure"),
        ({"chat_template_kwargs": {"messages": []}}, "refused"),
        ({"chat_template_kwargs": {"conversation": []}}, "refused"),
        ({"chat_template_kwargs": {"return_assistant_tokens_mask": True}}, "refused"),
        ({"chat_template_kwargs": {"tools": [1]}}, "refused"),
        ({"chat_template_kwargs": {"documents": 1}}, "refused"),
        ({"chat_template_kwargs": {"x": [{"y": 2.0**70}]}}, "unsure"),
        ({"chat_template_kwargs": []}, "refused"),
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "handover"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"documents": {}}, "refused"),
        ({"documents": ["x"]}, "refused"),
        ({"documents": [{"title": 1}]}, "refused"),
        ({"reasoning_effort": "huge"}, "refused"),
        ({"reasoning_effort": 3}, "refused"),
        ({"add_generation_prompt": None}, "refused"),
        ({"continue_final_message": True}, "refused"),
        ({"add_special_tokens": "nope"}, "refused"),
        ({"add_special_tokens": 2}, "refused"),
        ({"cache_salt": ""}, "refused"),
        ({"cache_salt": "a/b"}, "refused"),
        ({"cache_salt": "x" * 129}, "refused"),
        ({"cache_salt": 7}, "refused"),
        ({"cache_salt": "\udfff"}, "encoding"),
        ({"truncate_prompt_tokens": -2}, "refused"),
        ({"truncate_prompt_tokens": 0}, "refused"),
        ({"truncate_prompt_tokens": 2.5}, "refused"),
        ({"truncate_prompt_tokens": 101}, "refused"),
        ({"truncation_side": "middle"}, "refused"),
    ],
)
def test_requests_that_are_not_rendered(change: dict[str, Any], why: str) -> None:
    """Each has its reason, from a closed set."""
    assert reason({"messages": [USER], **change}, max_model_len=100) == why


def test_what_goes_to_the_tokenizer() -> None:
    """By default a chat gets no special tokens beyond its template's, and nothing is cut."""
    [shown] = renderer("x").render({"messages": [USER]}).texts
    assert shown == "x"
    assert renderer("x").render({"messages": [USER]}) == Rendered(("x",))
    body = {
        "messages": [USER],
        "add_special_tokens": True,
        "truncate_prompt_tokens": 5,
        "truncation_side": "right",
        "cache_salt": "s",
    }
    cut = Truncation(5, "right")
    assert renderer("x").render(body) == Rendered(("x",), (), True, cut, "s")  # noqa: FBT003


@pytest.mark.parametrize(
    ("change", "keep"),
    [({}, 9), ({"max_tokens": 1}, 8), ({"max_completion_tokens": 3, "max_tokens": 5}, 8)],
)
def test_as_many_tokens_as_the_model_takes(change: dict[str, Any], keep: int) -> None:
    """Minus one stands for them; one is left for an answer whose length is asked for."""
    body = {"messages": [USER], "truncate_prompt_tokens": -1, **change}
    assert renderer("x", max_model_len=9).render(body).truncation == Truncation(keep, None)
    assert reason(body, "x") == "unsure"


@pytest.mark.parametrize(
    ("value", "shown"), [("True", "True"), ("off", "False"), (1, "True"), (0.0, "False")]
)
def test_booleans_are_read_as_the_engine_reads_them(value: Any, shown: str) -> None:
    """Words and numbers count as well, as they do for the engine."""
    body = {"messages": [USER], "add_generation_prompt": value}
    assert text(body, "{{ add_generation_prompt }}") == shown


@pytest.mark.parametrize("value", [None, "auto"])
def test_variables_that_count_as_not_given(value: Any) -> None:
    """Null and "auto" leave a variable undefined, even where the effort would have set it."""
    source = "{{ enable_thinking is defined }} {{ x is defined }}"
    body = {
        "messages": [USER],
        "chat_template_kwargs": {"x": value, "enable_thinking": value},
        "reasoning_effort": "low",
    }
    assert text(body, source) == "False False"


def test_the_operators_variables_are_weaker() -> None:
    """They count where the client says nothing, a null of theirs is a value."""
    source = "{{ a }} {{ b }} {{ c is none }} {{ enable_thinking }}"
    defaults = {"a": 1, "b": 2, "c": None, "enable_thinking": False}
    given = {"a": 7, "b": None}
    body = {"messages": [USER], "chat_template_kwargs": given, "reasoning_effort": "low"}
    assert text(body, source, default_variables=defaults) == "7 2 True True"


def test_names_of_apply_chat_template_never_reach_a_template() -> None:
    """Hugging Face's code takes them, so a template that reads them finds nothing."""
    source = "{{ padding is defined }} {{ max_length is defined }} {{ return_dict is defined }}"
    given = {"padding": True, "max_length": 3, "return_dict": True, "tokenize": False}
    assert text({"messages": [USER], "chat_template_kwargs": given}, source) == "False False False"


def test_tools_and_documents_by_way_of_variables() -> None:
    """They replace the request's tools, and give way to the request's documents."""
    source = "{{ tools | tojson }} {{ documents | tojson }}"
    body = {
        "messages": [USER],
        "tools": [{"function": {"name": "f"}}],
        "documents": [{"a": "b"}],
        "chat_template_kwargs": {"tools": [{"q": 1}], "documents": [{"c": 2}]},
    }
    assert text(body, source) == '[{"q": 1}] [{"a": "b"}]'


def test_tools_can_be_hidden_from_the_template() -> None:
    """An engine may hide them where the client says that none may be called."""
    body = {"messages": [USER], "tools": [{"function": {"name": "f"}}], "tool_choice": "none"}
    assert text(body, "{{ tools is none }}", excludes_tools=True) == "True"
    assert (
        text({**body, "tool_choice": "auto"}, "{{ tools is none }}", excludes_tools=True) == "False"
    )


def test_deferred_tools() -> None:
    """Said beside the function it counts for the function, too; booleans are read leniently."""
    tools = [
        {"function": {"name": "f"}, "defer_loading": "yes"},
        {"function": {"name": "g", "strict": 0, "defer_loading": False}, "defer_loading": True},
    ]
    shown = json.loads(text({"messages": [USER], "tools": tools}, "{{ tools | tojson }}"))
    assert [tool["defer_loading"] for tool in shown] == [True, True]
    assert [tool["function"]["defer_loading"] for tool in shown] == [True, False]
    assert shown[1]["function"]["strict"] is False


@pytest.mark.parametrize(
    "choice",
    ["x", 5, {}, {"function": {}}, {"function": {"name": "g"}}, {"type": "x", "function": NAMED}],
)
def test_choices_that_the_engine_refuses(choice: Any) -> None:
    """A choice is a known word, or names exactly one tool on offer."""
    tools = [{"function": {"name": "f"}}]
    assert reason({"messages": [USER], "tools": tools, "tool_choice": choice}) == "refused"
    named = {"messages": [USER], "tools": tools, "tool_choice": {"function": NAMED}}
    assert renderer().render(named).texts
    assert reason({**named, "tools": tools * 2}) == "refused"


def test_tokens_that_only_the_engines_tokenizer_knows() -> None:
    """A template that reads a special token which may or may not exist is left to the engine."""
    unknown = SpecialTokens({}, frozenset({"bos_token"}))
    assert reason({"messages": [USER]}, "{{ bos_token }}", special_tokens=unknown) == "unsure"
    assert text({"messages": [USER]}, "{{ eos_token }}x", special_tokens=unknown) == "x"


# --- continuing the last message ------------------------------------------------------------------

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
TRIMMING = CHATML.replace("m.content", "m.content | trim")


@pytest.mark.parametrize(
    ("source", "content", "shown"),
    [
        (CHATML, "The answer is", "<user>u</><assistant>The answer is"),
        (CHATML, "trailing ", "<user>u</><assistant>trailing "),
        (TRIMMING, "trailing ", "<user>u</><assistant>trailing"),
    ],
)
def test_the_last_message_is_continued(source: str, content: str, shown: str) -> None:
    """Text ends where the message ends; its last blanks go only if the template takes them."""
    body = {"messages": [USER, {"role": "assistant", "content": content}], **CONTINUE}
    assert text(body, source) == shown


def test_the_last_part_is_continued() -> None:
    """With contents as parts, the last one is continued."""
    source = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text({"messages": [{"role": "user", "content": parts}], **CONTINUE}, source) == "[a][b"
    assert reason({"messages": [{"role": "user", "content": []}], **CONTINUE}, source) == "refused"


def test_a_template_that_drops_the_last_message_cannot_continue_it() -> None:
    """Nothing shows where to cut."""
    assert reason({"messages": [USER], **CONTINUE}, "fixed{# content #}") == "refused"


def test_a_template_without_contents_cannot_continue_one() -> None:
    """Hugging Face's code asks for the word in the template's source."""
    assert reason({"messages": [USER], **CONTINUE}, "{{ messages[0].role }}") == "refused"


@pytest.mark.parametrize(
    "change",
    [
        {"use_beam_search": True},
        {"structured_outputs": {"structural_tag": "{}"}},
        {"response_format": {"type": "structural_tag", "format": {}}},
    ],
)
def test_sampling_that_is_left_to_the_engine(change: dict[str, Any]) -> None:
    """Beams are requests of their own, and what a structural tag must be is the engine's to say."""
    assert reason({"messages": [USER], **change}) == "unsure"


def test_sampling_switched_off_is_none() -> None:
    """A switch that is off decides nothing."""
    assert text({"messages": [USER], "use_beam_search": False}, "x") == "x"

"""A request of OpenAI's Responses API as the chat that the engine makes of it. Pure.

A text, messages, reasoning, calls of functions and what they gave; instructions, functions on
offer, and the effort of reasoning. Whatever else decides the prompt (tools of other kinds, items of
other types, messages that are to be continued) is not rendered here.
Source: vLLM 0.32, entrypoints/openai/responses (utils.py, construct_input_messages), and what its
server made of requests; see tests/engine/paths.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.tools import AsItComes

Json = dict[str, Any]

_READ: Final = frozenset({
    "model", "input", "instructions", "max_output_tokens", "cache_salt", "tools", "tool_choice",
    "reasoning", "chat_template_kwargs",
})  # fmt: skip
_HARMLESS: Final = frozenset({
    "stream", "store", "metadata", "user", "temperature", "top_p", "top_k", "min_p",
    "parallel_tool_calls", "max_tool_calls", "service_tier", "request_id", "session_id", "priority",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop", "text",
    "stop_token_ids", "ignore_eos", "safety_identifier", "prompt_cache_key", "background",
    "include", "include_reasoning", "logit_bias", "top_logprobs",
})  # fmt: skip
"""Members that are read after the prompt is made."""
_MEDIA: Final = ("input_image", "input_file", "input_audio", "input_video")
_UNFINISHED: Final = ("in_progress", "incomplete")
_KEYS: Final = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "reasoning": frozenset({"type", "id", "summary", "content", "status", "encrypted_content"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
}
"""Types of items that are known, with the keys that are known of them."""


def chat_of(body: Body) -> Body:
    """Translate a request.

    Raises:
        PromptUnavailable: "stored" where it goes on from what one engine keeps, "refused" where the
            engine would, "multimodal" where there is more than text, else "unsure".

    Cost: 2 us, and 2 us per item.
    """
    if body.get("previous_response_id") is not None:
        unavailable("stored")
    instructions, given = body.get("instructions"), body.get("input")
    if not isinstance(instructions, str | None):
        unavailable("refused")
    messages: list[Json] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        messages += _joined(map(_message, given))
    else:
        unavailable("refused")
    chat: Json = {"model": body.get("model"), "messages": messages}
    for ours, theirs in (
        ("max_tokens", "max_output_tokens"),
        ("cache_salt", "cache_salt"),
        ("chat_template_kwargs", "chat_template_kwargs"),
    ):
        if body.get(theirs) is not None:
            chat[ours] = body[theirs]
    chat |= _tools(body.get("tools"), body.get("tool_choice"))
    if (effort := _effort(body.get("reasoning"))) is not None:
        chat["reasoning_effort"] = effort
    _check_others(body)
    return chat


def _check_others(body: Body) -> None:
    for name in body.keys() - _READ - _HARMLESS:
        is_said = body[name] not in (None, [])
        if is_said and (name, body[name]) != ("truncation", "disabled"):
            unavailable("unsure")


def _joined(messages: Iterable[Json]) -> list[Json]:
    """Make one message of the assistant's items, as far as each brings what is not there yet."""
    joined: list[Json] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before is None or {before["role"], message["role"]} != {"assistant"}:
            joined.append(message)
            continue
        (brought,) = message.keys() - {"role"}
        if brought == "tool_calls":
            before["tool_calls"] = [*before.get("tool_calls", []), *message["tool_calls"]]
        elif brought not in before:
            before[brought] = message[brought]
        else:
            joined.append(message)
    return joined


def _message(item: Any) -> Json:
    if not isinstance(item, dict):
        unavailable("refused")
    kind = item.get("type", "message")
    known = _KEYS.get(kind) if isinstance(kind, str) else None
    if known is None or not item.keys() <= known or item.get("status") in _UNFINISHED:
        unavailable("unsure")
    if kind == "reasoning":
        return _reasoning(item)
    if kind == "function_call":
        return _call(item)
    return _said(item) if kind == "message" else _result(item)


def _said(item: Json) -> Json:
    role, content = item.get("role"), item.get("content")
    parts = content if isinstance(content, list) else []
    if any(isinstance(part, dict) and part.get("type") in _MEDIA for part in parts):
        unavailable("multimodal")
    kind = "input_text"
    if role == "assistant":
        kind = "output_text"
        if len(parts) > 1:
            # The engine takes the first one only.
            unavailable("unsure")
    elif role not in ("user", "system", "developer"):
        unavailable("unsure")
    texts = [content] if isinstance(content, str) else [_text(part, kind) for part in parts]
    if not texts:
        unavailable("unsure")
    if isinstance(content, str) or role == "assistant":
        return {"role": role, "content": texts[0]}
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def _text(part: Any, kind: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == kind else None
    if not isinstance(text, str):
        unavailable("unsure")
    return text


def _reasoning(item: Json) -> Json:
    if item.get("encrypted_content"):
        unavailable("refused")
    summary, content = item.get("summary"), item.get("content") or []
    if not isinstance(summary, list) or not isinstance(content, list):
        unavailable("unsure")
    summaries = [_text(part, "summary_text") for part in summary]
    texts = [_text(part, "reasoning_text") for part in content]
    return {"role": "assistant", "reasoning": next(iter([*texts[:1], *summaries[:1]]), "")}


def _call(item: Json) -> Json:
    number, name, arguments = (_string(item, key) for key in ("call_id", "name", "arguments"))
    function = AsItComes(name=name, arguments=arguments)
    call = {"id": number, "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def _result(item: Json) -> Json:
    output = item.get("output")
    if isinstance(output, list) and output:
        texts = [_text(part, "input_text") for part in output]
        output = [{"type": "text", "text": text} for text in texts]
    elif not isinstance(output, str):
        unavailable("unsure")
    return {"role": "tool", "content": output, "tool_call_id": _string(item, "call_id")}


def _string(item: Json, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        unavailable("unsure")
    return value


def _tools(tools: Any, choice: Any) -> Json:
    """Write the functions on offer, and which of them is to be called."""
    if not tools:
        if choice not in (None, "auto", "none"):
            unavailable("refused")
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        unavailable("refused")
    if any(tool.get("type") != "function" for tool in tools):
        unavailable("unsure")
    functions = [{name: tool[name] for name in tool if name != "type"} for tool in tools]
    written = [{"type": "function", "function": function} for function in functions]
    if isinstance(choice, dict):
        if choice.keys() != {"type", "name"} or choice["type"] != "function":
            unavailable("unsure")
        choice = {"type": "function", "function": {"name": choice["name"]}}
    return {"tools": written, "tool_choice": choice or "auto"}


def _effort(reasoning: Any) -> Any:
    if reasoning is None:
        return None
    if not isinstance(reasoning, dict):
        unavailable("refused")
    if not reasoning.keys() <= {"effort", "summary", "generate_summary"}:
        unavailable("unsure")
    return reasoning.get("effort")

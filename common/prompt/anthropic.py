"""A request of Anthropic's Messages API as the chat that the engine makes of it. Pure.

Only what decides the prompt is translated. Where the engine's translation depends on what it
probes of its own template (system messages further down, thinking that is switched off), the
request is not rendered here.
Source: vLLM 0.32, entrypoints/anthropic/serving.py (to_chat_completion_request).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.reasons import unavailable

Json = dict[str, Any]

_AS_THEY_ARE: Final = (
    "model", "max_tokens", "cache_salt", "chat_template_kwargs", "kv_transfer_params",
)  # fmt: skip
_UNSAID: Final = "x-anthropic-billing-header"
"""How a text begins that the engine leaves out: it differs with every request."""
_KNOWN: Final = {
    "user": frozenset({"text", "thinking", "redacted_thinking", "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
}
"""Blocks whose translation is known, by the role that brings them."""
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(body: Body) -> Body:
    """Translate a request.

    Raises:
        PromptUnavailable: "refused" where the engine would, "multimodal" where there is more than
            text, "unsure" where its translation is not known here.

    Cost: 2 us, and 1 us per block.
    """
    if not isinstance(body.get("messages"), list) or type(body.get("max_tokens")) is not int:
        unavailable("refused")
    chat: Json = {name: body[name] for name in _AS_THEY_ARE if name in body}
    chat["messages"] = [*_system(body.get("system")), *_messages(body["messages"])]
    if (effort := _effort(body)) is not None:
        chat["reasoning_effort"] = effort
    if (tools := body.get("tools")) is not None:
        chat["tools"] = _tools(tools)
        chat["tool_choice"] = _tool_choice(body.get("tool_choice"))
    elif body.get("tool_choice") is not None:
        unavailable("unsure")
    return chat


def _effort(body: Body) -> Any:
    thinking, output = body.get("thinking"), body.get("output_config")
    if isinstance(thinking, dict) and thinking.get("type") == "disabled":
        unavailable("unsure")
    return output.get("effort") if isinstance(output, dict) else None


def _system(system: Any) -> list[Json]:
    if isinstance(system, str):
        return [{"role": "system", "content": system}] if system else []
    texts = [_text(block, "text") for block in _blocks(system)]
    said = "".join(text for text in texts if text and not text.startswith(_UNSAID))
    return [{"role": "system", "content": said}] if said else []


def _messages(messages: list[Any]) -> Iterator[Json]:
    for message in messages:
        if not isinstance(message, dict):
            unavailable("refused")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in _KNOWN:
            # A system message down here is moved or not, as the engine's template wants it.
            unavailable("unsure" if role == "system" else "refused")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        else:
            yield from _of_blocks(role, _blocks(content, is_needed=True))


def _blocks(content: Any, *, is_needed: bool = False) -> list[Json]:
    if content is None and not is_needed:
        return []
    if not isinstance(content, list):
        unavailable("refused")
    if not all(isinstance(block, dict) and isinstance(block.get("type"), str) for block in content):
        unavailable("refused")
    return content


def _of_blocks(role: str, blocks: list[Json]) -> Iterator[Json]:
    """Write a message, behind the results of tools that it brings."""
    known = _KNOWN[role]
    if unknown := {block["type"] for block in blocks} - known:
        unavailable("multimodal" if "image" in unknown else "unsure")
    yield from (_result(block) for block in blocks if block["type"] == "tool_result")
    texts = [text for block in blocks if (text := _text(block, "text"))]
    thoughts = [text for block in blocks if (text := _text(block, "thinking"))]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    message: Json = {"role": role}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    if texts:
        parts = [{"type": "text", "text": text} for text in texts]
        message["content"] = texts[0] if len(texts) == 1 else parts
    if role == "assistant" or texts:
        yield message


def _text(block: Json, kind: str) -> str | None:
    """Give the text of a block of this kind."""
    text = block.get(kind) if block["type"] == kind else None
    if not isinstance(text, str | None):
        unavailable("refused")
    return text


def _call(block: Json) -> Json:
    number, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(number, str) or not number:
        # The engine makes one up from the time.
        unavailable("unsure")
    if not isinstance(name, str | None) or not isinstance(given, dict | None):
        unavailable("refused")
    function = {"name": name or "", "arguments": json.dumps(given or {})}
    return {"id": number, "type": "function", "function": function}


def _result(block: Json) -> Json:
    content = block.get("content")
    if not isinstance(content, str):
        items = _blocks(content)
        if any(item["type"] == "image" for item in items):
            unavailable("multimodal")
        if any(item["type"] != "text" or not isinstance(item.get("text"), str) for item in items):
            unavailable("unsure")
        content = "\n".join(item["text"] for item in items)
    return {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": content}


def _tools(tools: Any) -> list[Json]:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        unavailable("refused")
    if not tools:
        unavailable("unsure")
    return [_tool(tool) for tool in tools]


def _tool(tool: Json) -> Json:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        unavailable("refused")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": schema if "type" in schema else {**schema, "type": "object"},
        "strict": tool.get("strict"),
        "defer_loading": tool.get("defer_loading"),
    }
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if choice is None:
        return "auto"
    if not isinstance(choice, dict):
        unavailable("refused")
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind := choice.get("type"), str) or kind not in _CHOICES:
        unavailable("refused")
    return _CHOICES[kind]

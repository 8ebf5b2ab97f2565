"""A request of OpenAI's Responses API as the chat that the engine makes of it. Pure.

Only what is plain: a text or messages, and instructions. Whatever else decides the prompt (tools,
reasoning, items of other types) is not rendered here.
Source: vLLM 0.32, entrypoints/openai/responses (utils.py, construct_input_messages).
"""

from __future__ import annotations

from typing import Any, Final

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.reasons import unavailable

Json = dict[str, Any]

_READ: Final = frozenset({"model", "input", "instructions", "max_output_tokens", "cache_salt"})
_HARMLESS: Final = frozenset({
    "stream", "store", "metadata", "user", "temperature", "top_p", "top_k", "min_p", "tool_choice",
    "parallel_tool_calls", "max_tool_calls", "service_tier", "request_id", "priority",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop", "text",
    "safety_identifier", "prompt_cache_key", "background", "include", "logit_bias",
})  # fmt: skip
"""Members that are read after the prompt is made; `tool_choice` where there are no tools."""
_KEYS: Final = frozenset({"type", "role", "content", "id", "status"})
_MEDIA: Final = ("input_image", "input_file", "input_audio", "input_video")
_UNFINISHED: Final = ("in_progress", "incomplete")


def chat_of(body: Body) -> Body:
    """Translate a request.

    Raises:
        PromptUnavailable: "stored" where it goes on from what one engine keeps, "refused" where the
            engine would, "multimodal" where there is more than text, else "unsure".
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
        messages += [_message(item) for item in given]
    else:
        unavailable("refused")
    if any(body[name] not in (None, []) for name in body.keys() - _READ - _HARMLESS):
        unavailable("unsure")
    chat = {"model": body.get("model"), "messages": messages}
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if body.get("cache_salt") is not None:
        chat["cache_salt"] = body["cache_salt"]
    return chat


def _message(item: Any) -> Json:
    if not isinstance(item, dict):
        unavailable("refused")
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    if any(isinstance(part, dict) and part.get("type") in _MEDIA for part in parts):
        unavailable("multimodal")
    is_plain = item.get("type", "message") == "message" and item.keys() <= _KEYS
    if not is_plain or item.get("status") in _UNFINISHED:
        unavailable("unsure")
    role, kind = item.get("role"), "input_text"
    if role == "assistant":
        kind = "output_text"
        if len(parts) > 1:
            # The engine takes the first one only.
            unavailable("unsure")
    elif role not in ("user", "system"):
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

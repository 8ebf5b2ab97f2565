"""Messages as the engine hands them to the template.

The engine keeps known keys only, in an order of its own (templates that print a message with
`tojson` show it), and flattens or wraps contents to what the template wants.
Source: vLLM 0.32, measured; see tests/golden.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.reasons import Reason, unavailable
from kvatlas.common.prompt.tools import tool_calls_of

ContentFormat = Literal["string", "openai"]
Message = dict[str, Any]

_BILLING_HEADER: Final = "x-anthropic-billing-header"
_MEDIA: Final = frozenset({
    "image_url", "image_pil", "image_embeds", "image", "audio_url", "audio_embeds", "input_audio",
    "input_image", "audio", "video_url", "video", "vision_chunk", "file",
})  # fmt: skip
_TEXTS_OF_OTHER_APIS: Final = frozenset({"output_text", "refusal", "thinking", "tool_reference"})


def normalise_messages(
    messages: Any, content_format: ContentFormat, *, knows_developer: bool
) -> list[Message]:
    """Write the messages of a body as the template will see them.

    Args:
        messages: as the body has them.
        content_format: what the template wants contents to be.
        knows_developer: whether the template handles the role "developer".

    Raises:
        InvalidRequest: it is no list of objects.
        PromptUnavailable: the engine would refuse them, or they cannot be rendered here.
    """
    if not isinstance(messages, list):
        raise InvalidRequest("messages must be an array", "messages")
    if not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest("each message must be an object", "messages")
    if not messages:
        unavailable("refused")
    if len(messages) > limits.MESSAGES_MAX:
        unavailable("too_many_messages")
    if not knows_developer and any(message.get("role") == "developer" for message in messages):
        as_system = [
            {**message, "role": "system"} if message.get("role") == "developer" else message
            for message in messages
        ]
        return _systems_first([_message(message, content_format) for message in as_system])
    return [_message(message, content_format) for message in messages]


def _systems_first(messages: list[Message]) -> list[Message]:
    """Merge all system messages into one at the front, as the engine does for "developer"."""
    systems = [message for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if len(systems) == 1:
        return [*systems, *others]
    if not all(isinstance(message["content"], str) for message in systems):
        unavailable("unsure")
    merged = "\n\n".join(message["content"] for message in systems)
    return [{"role": "system", "content": merged}, *others]


def _message(message: Body, content_format: ContentFormat) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        unavailable("refused")
    # A tool's answer is one string for every template.
    wanted: ContentFormat = "string" if role == "tool" else content_format
    written: Message = {"role": role, "content": _content(message.get("content"), role, wanted)}
    if role == "assistant":
        written |= _assistant_keys(message)
    if role == "tool" and message.get("tool_call_id") is not None:
        written["tool_call_id"] = message["tool_call_id"]
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            written[key] = message[key]
    if role == "developer":
        written["tools"] = message.get("tools")
    return written


def _assistant_keys(message: Body) -> Message:
    written: Message = {}
    calls = tool_calls_of(message)
    if calls:
        written["tool_calls"] = calls
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        if not isinstance(reasoning, str):
            unavailable("refused")
        # Templates read either name.
        written["reasoning"] = reasoning
        written["reasoning_content"] = reasoning
    return written


def _content(content: Any, role: str, content_format: ContentFormat) -> str | list[Message]:
    if content is None:
        parts = []
    elif isinstance(content, str):
        parts = [{"type": "text", "text": content}]
    elif isinstance(content, list):
        parts = [_text_part(part) for part in content]
    else:
        unavailable("refused")
    if role == "system":
        parts = [{**part, "text": _without_billing(part["text"])} for part in parts]
    if content_format == "openai":
        return parts
    return "\n".join(part["text"] for part in parts)


def _text_part(part: Any) -> Message:
    """Keep a part of text, its further keys (such as `cache_control`) behind the known two."""
    if not isinstance(part, dict):
        unavailable("refused")
    kind, text = part.get("type"), part.get("text")
    if kind != "text" or not isinstance(text, str):
        unavailable(_why_not_text(kind))
    return {"type": kind, "text": text} | part


def _why_not_text(kind: Any) -> Reason:
    if not isinstance(kind, str):
        return "refused"
    if kind in _MEDIA:
        return "multimodal"
    return "unsure" if kind in _TEXTS_OF_OTHER_APIS else "refused"


def _without_billing(text: str) -> str:
    """Drop the line that some clients put before a system prompt and that changes every time."""
    return text.partition("\n")[2] if text.startswith(_BILLING_HEADER) else text

"""Contents of messages: strings, or lists of parts, as the template wants them.

Source: vLLM 0.32, measured; see tests/unit/test_prompt_parts.py.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from kvatlas.common.prompt.lax import is_bool
from kvatlas.common.prompt.reasons import unavailable

ContentFormat = Literal["string", "openai"]
Part = dict[str, Any]

_TEXT_KEYS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Types of parts that are text, and the key that holds it."""
_MAY_BE_NULL: Final = frozenset({"text", "refusal"})
_TOOL_REFERENCE: Final = "tool_reference"
_MEDIA: Final = frozenset({
    "image_url", "image_pil", "image_embeds", "input_image", "audio_url", "audio_embeds",
    "input_audio", "video_url", "video_embeds",
})  # fmt: skip
_CARRIES_MEDIA: Final = _MEDIA | {"image", "audio", "video", "vision_chunk", "file"}
# The keys that the engine knows of any part: they never reach the template.
_KNOWN_KEYS: Final = _MEDIA - {"input_image"} | {
    "closed", "data", "file", "name", "prompt_cache_breakpoint", "refusal", "text", "thinking",
    "type", "uuid",
}  # fmt: skip
_BILLING_HEADER: Final = "x-anthropic-billing-header"


def content_of(content: Any, role: str, content_format: ContentFormat) -> str | list[Part]:
    """Write a content as the template will see it.

    Args:
        content: a string, null or a list; whether the role may have it is checked elsewhere.
        role: of the message; a tool's answer is one string for every template.
        content_format: what the template wants.

    Raises:
        PromptUnavailable: the engine would refuse a part, or it is not text.
    """
    if isinstance(content, str) and not (role == "system" and content.startswith(_BILLING_HEADER)):
        if content_format == "string" or role == "tool":
            return content
        return [{"type": "text", "text": content}]
    parts = _parts([content] if isinstance(content, str) else content or [])
    if role == "system":
        parts = _without_billing(parts)
    if content_format == "openai":
        return _tools_answer(parts) if role == "tool" else parts
    texts = [part["name" if part["type"] == _TOOL_REFERENCE else "text"] for part in parts]
    return "\n".join(text for text in texts if text)


def is_typed(part: Any) -> bool:
    """Tell whether the engine's own types describe a part; of bare strings they do not.

    It takes a list from the usual roles only if they describe at least one of its parts.
    """
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if kind == _TOOL_REFERENCE:
        return True
    if kind == "thinking" and not is_bool(part.get("closed", False)):
        return False
    return kind in ("text", "refusal", "thinking") and isinstance(part.get(kind), str)


def is_usual(part: Any) -> bool:
    """Tell whether a part is a text of the kind that every role may have."""
    return isinstance(part, dict) and part.get("type") == "text" and is_typed(part)


def _parts(content: list[Any]) -> list[Part]:
    parsed = (_part(part) for part in content)
    return [part for part in parsed if part is not None]


def _part(part: Any) -> Part | None:
    """Keep a part of text with its further keys, such as `cache_control`; None is left out."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        unavailable("refused")
    kind = part.get("type")
    if not isinstance(kind, str) or part.get("uuid") is not None:
        unavailable("refused" if _CARRIES_MEDIA.isdisjoint(part) else "multimodal")
    if kind == _TOOL_REFERENCE:
        return {"type": kind, "name": _text(part.get("name"))}
    if kind not in _TEXT_KEYS:
        unavailable("multimodal" if kind in _CARRIES_MEDIA else "refused")
    text = part.get(_TEXT_KEYS[kind])
    if text is None and kind in _MAY_BE_NULL:
        return None
    extras = {key: value for key, value in part.items() if key not in _KNOWN_KEYS}
    return {"type": "text", "text": _text(text), **extras}


def _text(text: Any) -> str:
    # The engine does not check, and what it does with others depends on the template.
    if not isinstance(text, str):
        unavailable("unsure")
    return text


def _tools_answer(parts: list[Part]) -> str | list[Part]:
    if any(part["type"] == _TOOL_REFERENCE for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _without_billing(parts: list[Part]) -> list[Part]:
    """Drop the line that some clients put before a system prompt and that changes every time."""
    kept = []
    for part in parts:
        text = part.get("text", "")
        if not text.startswith(_BILLING_HEADER):
            kept.append(part)
        elif rest := text.partition("\n")[2]:
            kept.append({**part, "text": rest})
    return kept

"""Messages as the engine hands them to the template.

The engine keeps known keys only, in an order of its own (templates that print a message with
`tojson` show it), and flattens or wraps contents to what the template wants. It describes each
message twice, by role and by a type for any role, and takes what fits one of the two.
Source: vLLM 0.32, measured; see tests/golden and tests/unit/test_prompt_messages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kvatlas.common import limits
from kvatlas.common.errors import InvalidRequest
from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.lax import check_numbers
from kvatlas.common.prompt.parts import ContentFormat, content_of, is_typed, is_usual
from kvatlas.common.prompt.reasons import unavailable
from kvatlas.common.prompt.tools import (
    are_function_tools,
    are_tool_calls,
    ordered_tools,
    tool_calls_of,
)

Message = dict[str, Any]
_Check = Callable[[Any], bool]

_ABSENT: Final = object()
_PLAIN: Final = frozenset({"role", "content"})


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
    check_types(messages)
    if not messages:
        unavailable("refused")
    if len(messages) > limits.MESSAGES_MAX:
        unavailable("too_many_messages")
    written = [_message(message, content_format) for message in messages]
    if not knows_developer and any(message["role"] == "developer" for message in written):
        return _systems_first([_as_system(message) for message in written])
    return written


def check_types(messages: Any) -> None:
    """Refuse what no client library would send.

    Raises:
        InvalidRequest: it is no list of objects.
    """
    if not isinstance(messages, list):
        raise InvalidRequest("messages must be an array", "messages")
    if not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest("each message must be an object", "messages")


def _as_system(message: Message) -> Message:
    if message["role"] != "developer":
        return message
    return {"role": "system", **{k: v for k, v in message.items() if k not in ("role", "tools")}}


def _systems_first(messages: list[Message]) -> list[Message]:
    """Merge all system messages into one at the front, as the engine does for "developer"."""
    systems = [message for message in messages if message["role"] == "system"]
    if len(systems) == 1 and messages[0]["role"] == "system":
        return messages
    texts = [_flat(message["content"]) for message in systems]
    merged = "\n\n".join(text for text in texts if text)
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": merged}, *others]


def _flat(content: str | list[Message]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if "text" in part)


def _message(message: Body, content_format: ContentFormat) -> Message:
    role, content = message.get("role"), message.get("content", _ABSENT)
    if not isinstance(role, str):
        unavailable("refused")
    if isinstance(content, str) and message.keys() == _PLAIN and role in _SIMPLE_ROLES:
        return {"role": role, "content": content_of(content, role, content_format)}
    message = {**message, "tool_calls": _listed(message.get("tool_calls"))}
    fits_any = _check(message, role, content)
    written: Message = {
        "role": role,
        "content": content_of(None if content is _ABSENT else content, role, content_format),
    }
    if role == "assistant":
        written |= _assistant_keys(message)
    if role == "tool" and "tool_call_id" in message:
        written["tool_call_id"] = message["tool_call_id"]
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            written[key] = message[key]
    if role == "developer":
        # The type for a role does not describe them, so by that they stay as they are.
        tools = message.get("tools")
        written["tools"] = ordered_tools(tools) if fits_any else tools
    return written


def _listed(calls: Any) -> Any:
    """Read tool calls that are no list as the engine does, by listing what they consist of."""
    if calls is None or isinstance(calls, list):
        return calls
    if not isinstance(calls, str | dict):
        unavailable("refused")
    return list(calls)


def _assistant_keys(message: Body) -> Message:
    written: Message = {}
    calls = tool_calls_of(message)
    if calls:
        written["tool_calls"] = calls
    reasoning = _reasoning(message)
    if reasoning is not None:
        # Templates read either name.
        written["reasoning"] = reasoning
        written["reasoning_content"] = reasoning
    return written


def _reasoning(message: Body) -> Any:
    reasoning = message.get("reasoning")
    return message.get("reasoning_content") if reasoning is None else reasoning


# --- what the engine takes --------------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_null(value: Any) -> bool:
    return isinstance(value, str | None)


def _text_or_list(value: Any) -> bool:
    return isinstance(value, str | list)


def _optional_text(value: Any) -> bool:
    return value is _ABSENT or isinstance(value, str)


def _has_texts(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


_ANY_ROLE: Final[Mapping[str, _Check]] = {
    "content": _text_or_list,
    "name": _text,
    "tool_call_id": _text_or_null,
    "task": _text_or_null,
    "tools": lambda tools: tools is None or are_function_tools(tools),
    "tool_calls": lambda calls: calls is None or are_tool_calls(calls),
}
"""Checks of the keys that are there, by the engine's type for any role."""
_INSTRUCTION: Final[Mapping[str, _Check]] = {"content": _text_or_list, "name": _optional_text}
_BY_ROLE: Final[Mapping[str, Mapping[str, _Check]]] = {
    "system": _INSTRUCTION,
    "developer": _INSTRUCTION,
    "user": _INSTRUCTION,
    "assistant": {
        "content": lambda content: content in (None, _ABSENT) or _text_or_list(content),
        "name": _optional_text,
        "refusal": lambda refusal: refusal is _ABSENT or _text_or_null(refusal),
        "audio": lambda audio: audio in (None, _ABSENT) or _has_texts(audio, "id"),
        "function_call": lambda call: (
            call in (None, _ABSENT) or _has_texts(call, "name", "arguments")
        ),
    },
    "tool": {"content": _text_or_list, "tool_call_id": _text},
    "function": {"content": _text_or_null, "name": _text},
}
"""Checks of every key, there or not, by the engine's types for the usual roles."""
_SIMPLE_ROLES: Final = frozenset({"system", "user", "assistant"})


def _check(message: Body, role: str, content: Any) -> bool:
    """Refuse what fits neither of the engine's types; tell whether it fits that for any role."""
    fits_any = _text_or_null(_reasoning(message)) and all(
        check(message[key]) for key, check in _ANY_ROLE.items() if key in message
    )
    by_role = _BY_ROLE.get(role)
    fits_role = by_role is not None and all(
        check(message.get(key, _ABSENT)) for key, check in by_role.items()
    )
    if not fits_any and not fits_role:
        unavailable("refused")
    for value in message.values():
        if not isinstance(value, str):
            check_numbers(value)
    if isinstance(content, list) and content and by_role is not None and role != "function":
        _check_list(message, role, content, fits_any=fits_any)
    return fits_any


def _check_list(message: Body, role: str, content: list[Any], *, fits_any: bool) -> None:
    """Refuse lists that the engine reads by the type for a role: that takes fewer kinds of parts.

    Of the two types the one counts that describes more of a message; on a tie the role's.
    """
    if not fits_any:
        unavailable("unsure")
    more = sum(key in message for key in _ANY_ROLE.keys() - _BY_ROLE[role].keys() - {"tool_calls"})
    more += _reasoning(message) is not None or "reasoning" in message
    less = sum(key in message for key in _BY_ROLE[role].keys() - _ANY_ROLE.keys())
    typed = sum(map(is_typed, content))
    if 2 * typed + more > less or all(map(is_usual, content)):
        return
    unavailable("unsure" if typed else "refused")

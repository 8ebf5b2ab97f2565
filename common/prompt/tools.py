"""Tools and tool calls, in the order of keys in which the engine's own models write them.

Templates print tools with `tojson`, so the order of keys decides tokens.
Source: vLLM 0.32, measured; see tests/golden.
"""

from __future__ import annotations

import json
from typing import Any

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.lax import as_bool, check_numbers
from kvatlas.common.prompt.reasons import unavailable

Json = dict[str, Any]


class AsItComes(Json):
    """A called function that no type of the engine's has put in order: its keys stay as they are.

    The engine makes it itself, of an item of a response.
    """


def tools_of(body: Body, *, exclude_with_none: bool) -> list[Json] | None:
    """Normalise the tools on offer; None where there are none.

    Args:
        body: of the request.
        exclude_with_none: whether the engine hides tools when `tool_choice` is "none".

    Raises:
        PromptUnavailable: the engine would refuse them.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is None:
        if choice not in (None, "none"):
            unavailable("refused")
        return None
    if not isinstance(tools, list) or not tools:
        unavailable("refused")
    check_numbers(tools)
    written = [_tool(tool) for tool in tools]
    if choice not in (None, "none", "auto", "required"):
        _check_named(choice, [tool["function"]["name"] for tool in written])
    return None if exclude_with_none and choice == "none" else written


def _check_named(choice: Any, names: list[str]) -> None:
    """Refuse a choice that does not name exactly one tool on offer."""
    if not isinstance(choice, dict) or choice.get("type", "function") != "function":
        unavailable("refused")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or names.count(name) != 1:
        unavailable("refused")


def _tool(tool: Any) -> Json:
    """Keep the known keys in the engine's order: nulls of the first three stay, unknown keys go."""
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        unavailable("refused")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        unavailable("refused")
    description, parameters = function.get("description"), function.get("parameters")
    if not isinstance(description, str | None) or not isinstance(parameters, dict | None):
        unavailable("refused")
    inner = {"name": function["name"], "description": description, "parameters": parameters}
    if function.get("strict") is not None:
        inner["strict"] = as_bool(function["strict"])
    # Given beside the function it counts for the function, too, unless that says otherwise.
    outer = tool.get("defer_loading")
    deferred = outer if function.get("defer_loading") is None else function["defer_loading"]
    if deferred is not None:
        inner["defer_loading"] = as_bool(deferred)
    written = {"type": "function", "function": inner}
    return written if outer is None else {**written, "defer_loading": as_bool(outer)}


def are_function_tools(tools: Any) -> bool:
    """Tell whether these are tools as a developer message may bring them."""
    return isinstance(tools, list) and all(map(_is_function_tool, tools))


def _is_function_tool(tool: Any) -> bool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return False
    function = tool.get("function")
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("description", ""), str)
        and isinstance(function.get("parameters", {}), dict)
        and isinstance(function.get("strict"), bool | None)
    )


def ordered_tools(tools: Any) -> Any:
    """Write the tools of a developer message; what are no tools stays as it is."""
    if not are_function_tools(tools):
        return tools
    return [
        {
            "function": _first(tool["function"], "name", "description", "parameters", "strict"),
            **_first(tool, "type", but=("function",)),
        }
        for tool in tools
    ]


def are_tool_calls(calls: Any) -> bool:
    """Tell whether these are tool calls as the engine's types describe them."""
    return isinstance(calls, list) and all(map(_is_tool_call, calls))


def _is_tool_call(call: Any) -> bool:
    if not isinstance(call, dict) or call.get("type") != "function":
        return False
    function = call.get("function")
    return (
        isinstance(call.get("id"), str)
        and isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str)
    )


def tool_calls_of(message: Body) -> list[Json]:
    """Normalise the tool calls of an assistant message; empty where there are none.

    Raises:
        PromptUnavailable: the engine would refuse them.
    """
    calls = message.get("tool_calls")
    if calls is None:
        return []
    if not are_tool_calls(calls):
        unavailable("refused")
    return [
        {
            "id": call["id"],
            "function": _called(call["function"]),
            **_first(call, "type", but=("id", "function")),
        }
        for call in calls
    ]


def _called(function: Json) -> Json:
    arguments = _arguments(function["arguments"])
    if isinstance(function, AsItComes):
        return {**function, "arguments": arguments}
    return {"arguments": arguments, **_first(function, "name", but=("arguments",))}


def _first(source: Json, *names: str, but: tuple[str, ...] = ()) -> Json:
    """Copy keys: those named first, if they are there, then all others as they come."""
    copy = {name: source[name] for name in names if name in source}
    for key, value in source.items():
        if key not in copy and key not in but:
            copy[key] = value
    return copy


def _arguments(arguments: str) -> Json:
    """Read the arguments, a JSON object in a string; what is none counts as empty.

    Raises:
        PromptUnavailable: it is JSON that the engine fails to read in another way.
    """
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return {}
    except (ValueError, RecursionError):
        unavailable("refused")
    return value if isinstance(value, dict) else {}

"""Tools and tool calls, in the order of keys in which the engine's own models write them.

Templates print tools with `tojson`, so the order of keys decides tokens.
Source: vLLM 0.32, measured; see tests/golden.
"""

from __future__ import annotations

import json
from typing import Any

from kvatlas.common.prompt.fields import Body
from kvatlas.common.prompt.reasons import unavailable

Json = dict[str, Any]


def tools_of(body: Body) -> list[Json] | None:
    """Normalise the tools on offer; None where there are none."""
    tools = body.get("tools")
    choice = body.get("tool_choice")
    if tools is None:
        if choice not in (None, "none"):
            unavailable("refused")
        return None
    if not isinstance(tools, list) or not tools:
        unavailable("refused")
    return [_tool(tool) for tool in tools]


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
    written = {"name": function["name"], "description": description, "parameters": parameters}
    for key in ("strict", "defer_loading"):
        if function.get(key) is not None:
            written[key] = function[key]
    return {"type": "function", "function": written}


def tool_calls_of(message: Body) -> list[Json]:
    """Normalise the tool calls of an assistant message; empty where there are none."""
    calls = message.get("tool_calls")
    if calls is None:
        return []
    if not isinstance(calls, list):
        unavailable("refused")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> Json:
    if not isinstance(call, dict):
        unavailable("refused")
    function = call.get("function")
    if not isinstance(function, dict):
        unavailable("unsure" if call.get("type") == "custom" else "refused")
    ordered = {"arguments": _arguments(function.get("arguments"))}
    ordered |= _in_order(function, ("name",), but="arguments")
    written: Json = _in_order(call, ("id",), only=True)
    written["function"] = ordered
    return written | _in_order(call, ("type",), but="function")


def _in_order(source: Json, first: tuple[str, ...], *, but: str = "", only: bool = False) -> Json:
    """Copy keys: the `first` ones, then (unless `only`) all others as they come."""
    copy = {key: source[key] for key in first if key in source}
    if not only:
        copy |= {key: value for key, value in source.items() if key != but}
    return copy


def _arguments(arguments: Any) -> Json:
    """Read the arguments, a JSON object in a string; what is none counts as empty."""
    if arguments is None:
        return {}
    if not isinstance(arguments, str):
        unavailable("refused")
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

"""Reading numbers and booleans as leniently as the engine does, which takes "true", 1 and "3".

Source: vLLM's request models are pydantic's in its lax mode; measured on vLLM 0.32.
"""

from __future__ import annotations

import re
from typing import Any, Final

from kvatlas.common.prompt.reasons import unavailable

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE: Final = frozenset({"0", "off", "f", "false", "n", "no"})
_INTEGER: Final = re.compile(r"-?\d{1,18}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d{1,18}(\.\d{1,18})?", re.ASCII)

INTEGER_FLOAT_MAX: Final = 2.0**63
"""From here on a float may be an integer that the JSON reader could not hold."""


def as_bool(value: Any) -> bool:
    """Read a boolean.

    Raises:
        PromptUnavailable: the engine would refuse it; null is no boolean either.
    """
    if not is_bool(value):
        unavailable("refused")
    return value.lower() in _TRUE if isinstance(value, str) else bool(value)


def is_bool(value: Any) -> bool:
    """Tell whether the engine takes this for a boolean."""
    if isinstance(value, str):
        return value.lower() in _TRUE | _FALSE
    return isinstance(value, int | float) and value in (0, 1)


def as_int(value: Any) -> int:
    """Read an integer.

    Raises:
        PromptUnavailable: the engine would refuse it, or it is written in an unusual way.
    """
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < INTEGER_FLOAT_MAX:
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return unavailable("refused")


def as_float(value: Any) -> float:
    """Read a number.

    Raises:
        PromptUnavailable: the engine would refuse it, or it is written in an unusual way.
    """
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    return unavailable("refused")


def check_numbers(value: Any) -> None:
    """Refuse numbers whose form is lost: templates print them, and 1e20 is not 10**20.

    Our JSON reader turns integers beyond 64 bits into floats; the engine's keeps them.

    Raises:
        PromptUnavailable: there is a float in `value` that may have been an integer.
    """
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest.extend(item.values())
        elif isinstance(item, list):
            rest.extend(item)
        elif isinstance(item, float) and not abs(item) < INTEGER_FLOAT_MAX:
            unavailable("unsure")

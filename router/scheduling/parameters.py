"""What a plugin of ours can be given: its fields, written in camelCase as llm-d's. Pure.

A plugin is a frozen dataclass; its fields are its parameters, and their types say what each may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from kvatlas.common.errors import ConfigError

Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Switch = Annotated[bool, Field(strict=True)]

_CONFIG: Final = ConfigDict(extra="forbid", alias_generator=to_camel, hide_input_in_errors=True)
_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})

T = TypeVar("T")


def takes_parameters(cls: type[T]) -> type[T]:
    """Let a dataclass be read from a mapping by `read`; it knows no other keys than its fields."""
    cls.__pydantic_config__ = _CONFIG  # type: ignore[attr-defined]
    return cls


def read(cls: type[T], parameters: Mapping[str, Any]) -> T:
    """Make a plugin of its parameters.

    Raises:
        ConfigError: with every fault, each beginning with the parameter's path.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(parameters))
    except ValidationError as error:
        raise ConfigError(fault_lines(error)) from None


def fault_lines(error: ValidationError) -> list[str]:
    """Say what is wrong and where, without the values."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in fault["loc"])
        text = "unknown" if fault["type"] in _UNKNOWN else fault["msg"]
        lines.append(f"{where}: {text.removeprefix('Value error, ')}")
    return lines

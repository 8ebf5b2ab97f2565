"""Values as llm-d and Kubernetes write them: durations, quantities. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator

_UNITS_S: Final = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_QUANTITY: Final = re.compile(r"(\d+\.?\d*|\.\d+)(k|[MGTPE]|[KMGTPE]i)?", re.ASCII)
_POWERS: Final = "KMGTPE"
_CHARS_MAX: Final = 64
"""Of a value; longer ones are none."""


def duration_s(text: object) -> float:
    """Read a duration as Go writes it, such as `1m30s` or `50ms`.

    Raises:
        ValueError: it is none, or negative.
    """
    if text == "0":
        return 0.0
    if not isinstance(text, str) or not 0 < len(text) <= _CHARS_MAX:
        raise ValueError("is a duration such as 500ms or 1m30s")
    total, end = Decimal(0), 0
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        total += Decimal(part[1]) * _UNITS_S[part[2]]
        end = part.end()
    if end != len(text):
        raise ValueError("is a duration such as 500ms or 1m30s")
    return float(total)


def quantity(text: object) -> int:
    """Read a quantity as Kubernetes writes it, such as `8Gi`, `1G` or 5000.

    Raises:
        ValueError: it is none, or no whole number of zero or more.
    """
    wrong = ValueError("is a quantity such as 5000, 1G or 8Gi")
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise wrong
    found = _QUANTITY.fullmatch(str(text)) if len(str(text)) <= _CHARS_MAX else None
    if found is None:
        raise wrong
    unit = found[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    power = _POWERS.index(unit[0].upper()) + 1 if unit else 0
    total = Decimal(found[1]) * base**power
    if total != int(total):
        raise wrong
    return int(total)


def size_bytes(text: object) -> int:
    """Read a size as flags take it: a quantity, or one with a B behind it (`10MiB`).

    Raises:
        ValueError: it is none.
    """
    is_text = isinstance(text, str) and len(text) > 1 and text[-1] in "Bb"
    return quantity(text[:-1] if is_text and isinstance(text, str) else text)


Duration = Annotated[float, BeforeValidator(duration_s)]
Quantity = Annotated[int, BeforeValidator(quantity)]

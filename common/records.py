"""Records of the way of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a dataclass with slots that is frozen, to type checkers.

    At run time it is not: one that is takes three times as long to make (3 us of 18 fields), and a
    request makes a score of them.
    """
    return dataclass(slots=True)(cls)

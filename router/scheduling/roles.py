"""Endpoints that are there for a stage of a request, as their labels say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import Switch, takes_parameters

ROLE: Final = "llm-d.ai/role"
ENCODE: Final = frozenset({"encode", "encode-prefill", "encode-decode", "encode-prefill-decode"})
PREFILL: Final = frozenset({
    "prefill", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both",
})  # fmt: skip
DECODE: Final = frozenset({
    "decode", "encode-decode", "prefill-decode", "encode-prefill-decode", "both",
})  # fmt: skip
"""What the label may say of those that serve a stage; "both" is the older "prefill-decode"."""


@takes_parameters
@dataclass(frozen=True, slots=True)
class ByLabelFilter:
    """Keep the endpoints of which a label has one of some values.

    Attributes:
        label: that is looked at.
        valid_values: that it may have.
        allows_no_label: keep those without the label, too.
    """

    is_hard: ClassVar[bool] = True

    label: Annotated[str, Field(min_length=1)]
    valid_values: tuple[str, ...] = ()
    allows_no_label: Switch = False

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those with such a label, or without it where that will do."""
        values = frozenset(self.valid_values)
        return _with(self.label, values, candidates, or_none=self.allows_no_label)


@takes_parameters
@dataclass(frozen=True, slots=True)
class EncodeFilter:
    """Keep the endpoints that encode images and the like."""

    is_hard: ClassVar[bool] = True

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those whose role says so."""
        return _with(ROLE, ENCODE, candidates)


@takes_parameters
@dataclass(frozen=True, slots=True)
class PrefillFilter:
    """Keep the endpoints that prefill."""

    is_hard: ClassVar[bool] = True

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those whose role says so."""
        return _with(ROLE, PREFILL, candidates)


@takes_parameters
@dataclass(frozen=True, slots=True)
class DecodeFilter:
    """Keep the endpoints that decode, those without a role among them."""

    is_hard: ClassVar[bool] = True

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those whose role says so, or that have none."""
        return _with(ROLE, DECODE, candidates, or_none=True)


def _with(
    label: str, values: frozenset[str], candidates: Sequence[Candidate], *, or_none: bool = False
) -> list[int]:
    return [
        i
        for i, each in enumerate(candidates)
        if (value := each.labels.get(label)) in values or (or_none and value is None)
    ]

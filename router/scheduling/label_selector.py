"""Endpoints with certain labels, selected as Kubernetes selects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kvatlas.router.scheduling.interfaces import Candidate, Work
from kvatlas.router.scheduling.parameters import takes_parameters

Key = Annotated[str, Field(min_length=1)]


@takes_parameters
@dataclass(frozen=True, slots=True)
class Requirement:
    """What the value of one label must be.

    Attributes:
        values: for In and NotIn, at least one; for the others none.

    Raises:
        ValueError: there are values where none belong, or none where some do.
    """

    key: Key
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            needs = "needs values" if not self.values else "takes no values"
            raise ValueError(f"{self.operator} {needs}")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels are as they must be; NotIn holds where there is no such label."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@takes_parameters
@dataclass(frozen=True, slots=True)
class LabelSelectorFilter:
    """Keep the endpoints with these labels; without any condition everybody.

    Attributes:
        match_labels: names and values that all must be there.
        match_expressions: that all must hold.
    """

    is_hard: ClassVar[bool] = True

    match_labels: dict[Key, str] = field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    def keep(self, work: Work, candidates: Sequence[Candidate]) -> Sequence[int]:  # noqa: ARG002 - interface
        """Give the positions of those selected."""
        return [i for i, each in enumerate(candidates) if self._selects(each.labels)]

    def _selects(self, labels: Mapping[str, str]) -> bool:
        return self.match_labels.items() <= labels.items() and all(
            each.holds(labels) for each in self.match_expressions
        )

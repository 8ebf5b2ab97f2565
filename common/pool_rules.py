"""What the objects beside a pool rule: priorities of objectives, and other names of models. Pure.

Of several pools in one process all objects count together, in the order of precedence: an exact
match before one of every model, then the older object, then the earlier rule in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from kvatlas.common.weighted_names import WeightedNames


@dataclass(frozen=True, slots=True)
class Identity:
    """Which object it is.

    Attributes:
        created: when; sorts.
    """

    namespace: str
    name: str
    created: str
    pools: frozenset[str]

    @property
    def age(self) -> tuple[str, str, str]:
        """Give what sorts the older one first."""
        return self.created, self.name, self.namespace


@dataclass(frozen=True, slots=True)
class Objective:
    """An InferenceObjective: the priority of requests that name it."""

    identity: Identity
    priority: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What requests for some models become.

    Attributes:
        models: the names, None for every one.
    """

    models: frozenset[str] | None
    targets: WeightedNames


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An InferenceModelRewrite."""

    identity: Identity
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class PoolRules:
    """All that is ruled at one moment.

    Attributes:
        priorities: of objectives, by name.
        exact: what models become, by name.
        every: what all others become; None where they stay as they are.
    """

    priorities: Mapping[str, int]
    exact: Mapping[str, WeightedNames]
    every: WeightedNames | None = None

    @classmethod
    def of(cls, objectives: Iterable[Objective], rewrites: Iterable[Rewrite]) -> Self:
        """Put all objects of all watched pools together."""
        priorities: dict[str, int] = {}
        for objective in sorted(objectives, key=lambda each: each.identity.age):
            priorities.setdefault(objective.identity.name, objective.priority)
        exact: dict[str, WeightedNames] = {}
        every: WeightedNames | None = None
        for rewrite in sorted(rewrites, key=lambda each: each.identity.age):
            for rule in rewrite.rules:
                if rule.models is None:
                    every = every or rule.targets
                for model in sorted(rule.models or ()):
                    exact.setdefault(model, rule.targets)
        return cls(priorities, exact, every)

    def priority(self, objective: str) -> int | None:
        """Give the priority of requests that name an objective; None if there is none of it."""
        return self.priorities.get(objective)

    def targets(self, model: str) -> WeightedNames | None:
        """Give what a model's requests become; None where they stay as they are."""
        return self.exact.get(model, self.every)

    def rewrite(self, model: str, chance: float) -> str | None:
        """Give the name that a request for a model is sent with; None where it stays.

        Args:
            model: as the client named it.
            chance: at least 0 and below 1; requests with the same one meet the same target.
        """
        targets = self.targets(model)
        return None if targets is None else targets.drawn(chance)


NO_RULES: Final = PoolRules({}, {})
Ruled = Callable[[], PoolRules]
"""Gives what is ruled at this moment."""

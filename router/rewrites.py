"""Which model a request goes to when it asks for another name: aliases and weighted rewrites. Pure.

The choice among several targets follows from the name and the request id alone, so every router
makes the same one, and a request that is sent again under its id meets the same model. Requests
without an id get a random one, so over them the shares are those of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Final

from kvatlas.common.settings import ModelSettings, RouterSettings

_DRAWS: Final = 2**64


@dataclass(frozen=True, slots=True)
class _Targets:
    """Names to go to, each with the upper end of its part of the draws."""

    names: tuple[str, ...]
    ends: tuple[float, ...]


class Rewrites:
    """Names that stand for others. Rewrites are not chained: a target is what engines serve."""

    def __init__(self, models: Sequence[ModelSettings], router: RouterSettings) -> None:
        weighted: dict[str, Mapping[str, float]] = {
            alias: {model.name: 1.0} for model in models for alias in model.aliases
        }
        self._targets = {name: _targets(w) for name, w in (weighted | router.rewrites).items()}

    def target(self, name: str, request_id: str) -> str:
        """Give the name that engines are sent; the same one where nothing is rewritten.

        Cost: 0.1 us where nothing is, 2 us where it is.
        """
        found = self._targets.get(name)
        if found is None:
            return name
        content = f"{name}\0{request_id}".encode("utf-8", "surrogateescape")
        digest = blake2b(content, digest_size=8, person=b"kvatlas/rewrite")
        draw = int.from_bytes(digest.digest(), "big") / _DRAWS
        at = next((i for i, end in enumerate(found.ends) if draw < end), len(found.ends) - 1)
        return found.names[at]

    def names(self) -> Mapping[str, Sequence[str]]:
        """List the names that are rewritten, each with all that it may become."""
        return {name: found.names for name, found in self._targets.items()}


def _targets(weights: Mapping[str, float]) -> _Targets:
    whole = sum(weights.values())
    return _Targets(tuple(weights), tuple(end / whole for end in accumulate(weights.values())))

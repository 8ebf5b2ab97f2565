"""What all places where endpoints are found have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvatlas.common.settings import EndpointSettings

Tell = Callable[[Sequence[EndpointSettings]], None]
"""Told of all endpoints of a place: once when they are first known, then with each change."""


class EndpointSource(Protocol):
    """A place where endpoints are found.

    One that cannot be asked keeps what it last told: the endpoints may be as well as ever.
    """

    async def run(self, tell: Tell) -> None:
        """Look for ever; each call of `tell` replaces what was told before."""

"""What all places where endpoints are found have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from kvatlas.common.errors import KvatlasError
from kvatlas.common.settings import EndpointSettings

Tell = Callable[[Sequence[EndpointSettings]], None]
"""Told of all endpoints of a place: once when they are first known, then with each change.

`model` may be empty: then it is the only one that is configured, or the engine is asked. Telling
again what was told before is free, and says that the place is in sync again after a failure.
"""


class EndpointSource(Protocol):
    """A place where endpoints are found.

    One that cannot be asked keeps what it last told: the endpoints may be as well as ever.
    """

    async def run(self, tell: Tell) -> None:
        """Look for ever; each call of `tell` replaces what was told before.

        It is run again, after a pause that grows, when it ends or fails, whatever with.

        Raises:
            SourceFailed: it cannot be asked.
        """


@runtime_checkable
class TellsFaults(Protocol):
    """A source that goes on by itself while something is wrong with it."""

    @property
    def faults(self) -> Sequence[str]:
        """Tell what is wrong at the moment."""


class SourceFailed(KvatlasError):
    """A place did not tell its endpoints.

    Args:
        faults: why, a line each, for the log.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults

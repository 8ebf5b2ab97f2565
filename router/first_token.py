"""Where a stream begins to tell what was generated, for one that speaks up earlier. Pure.

The stream of a response begins with the request as it was taken in, before its prompt is computed:
that first piece says nothing of how long computing took.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from kvatlas.router.usage import AnswerReader, Wrapped

_GENERATED: Final = re.compile(
    rb"\nevent: response\.(?!(?:created|queued|in_progress)\r?\n)[a-z_.]+\r?\n"
)
"""The name of an event behind those that only say that the request was taken in."""
_OVERLAP: Final = 96
"""Bytes before a piece that may be part of such a line."""


class Gaps(Protocol):
    """What is told the seconds between two pieces."""

    def observe(self, value: float, /) -> None:
        """Note one."""


class FirstToken(Wrapped):
    """Watch a stream for its first token; all else is for the reader within.

    Args:
        reader: what the answer passes through.
        came: called once, when the first token has come.
        gaps: told the seconds between pieces from then on.

    Cost: 1.4 us per piece of 3 KB until then, 0.03 us afterwards.
    """

    __slots__ = ("_came", "_gaps", "_tail")

    def __init__(self, reader: AnswerReader, came: Callable[[], None], gaps: Gaps) -> None:
        super().__init__(reader)
        self._came: Callable[[], None] | None = came
        self._gaps = gaps
        self._tail = b"\n"

    def feed(self, piece: bytes) -> bytes:
        """Take a piece as it was read."""
        if self._came is not None:
            seen = self._tail + piece
            if _GENERATED.search(seen):
                self._came()
                self._came = None
            self._tail = seen[-_OVERLAP:]
        return self._inner.feed(piece)

    def end(self) -> bytes:
        """Give what was held back."""
        return self._inner.end()

    def observe(self, value: float, /) -> None:
        """Note the seconds since the piece before, if that brought a token."""
        if self._came is None:
            self._gaps.observe(value)

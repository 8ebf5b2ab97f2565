"""Bound what is done between two turns of the loop, however many sockets are ready at once."""

from __future__ import annotations

import asyncio

from kvatlas.common import limits
from kvatlas.common.clock import monotonic


class Turns:
    """Let those who have much to do wait for the loop's next turn when this one is used up."""

    def __init__(self) -> None:
        self._began: float | None = None

    async def mine(self) -> None:
        """Wait until there is time left in the loop's turn: at once, mostly."""
        # An event would wake all that wait in one turn.
        while self._began is not None and monotonic() - self._began > limits.TURN_S:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if self._began is None:
            self._began = monotonic()
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._began = None

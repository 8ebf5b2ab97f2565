"""What all routers have under way, for all models of a process."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping

from kvatlas.common.ids import ModelName
from kvatlas.common.settings import Settings
from kvatlas.router.flight_log import FlightLog
from kvatlas.router.flights import Board, RouterId


def new_router_id() -> RouterId:
    """Draw a name for a router process."""
    return RouterId(f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}")


def boards_of(settings: Settings) -> dict[ModelName, Board]:
    """Make the board of each model; on all of them this process has one name."""
    me, rate = new_router_id(), settings.router.prefill_tokens_per_s
    return {m.model: Board(me, rate) for m in settings.models}


class FlightLogs:
    """The flight logs of all models.

    Args:
        logs: by model.
    """

    def __init__(self, logs: Mapping[ModelName, FlightLog]) -> None:
        self._logs = logs

    def of(self, model: ModelName) -> FlightLog:
        """Give a model's."""
        return self._logs[model]

    async def run(self) -> None:
        """Keep all boards up to date, for ever."""
        async with asyncio.TaskGroup() as group:
            for log in self._logs.values():
                group.create_task(log.run())

    async def aclose(self) -> None:
        """Say for all that nothing is under way any more."""
        await asyncio.gather(*(log.aclose() for log in self._logs.values()))

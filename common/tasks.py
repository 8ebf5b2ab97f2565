"""Supervised tasks: a dead task is a dead process, never a silent one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

import uvloop

from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger

_LOG = logger("tasks")

CANCEL_AGAIN_S = 0.05
EX_CONFIG = 78
"""Exit status for a configuration that cannot be used (sysexits.h)."""


class TasksDied(ExceptionGroup):
    """What tasks of a supervisor died of; each was told of when it did."""


class Supervisor:
    """Own the tasks of a process; the first one that fails ends them all.

    Use it as an asynchronous context manager. Leaving it cancels what still runs and waits.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        cancelling = asyncio.create_task(self._cancel_for_good())
        try:
            await self._group.__aexit__(*exc)  # type: ignore[arg-type]  # passes what it was given
        except BaseExceptionGroup as failed:
            # An error of the context itself is raised as it is.
            if failed.exceptions == (exc[1],):
                return
            if isinstance(failed, ExceptionGroup):
                raise TasksDied(failed.message, failed.exceptions) from None
            raise
        finally:
            cancelling.cancel()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine until it ends or the supervisor does.

        An exception in it is raised from the supervisor's context, after all else is cancelled.
        """
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def _cancel_for_good(self) -> None:
        """Cancel until all have ended.

        Once is not enough: `asyncio.wait_for` (up to Python 3.11, and redis-py connects with it)
        swallows a cancellation that comes at the moment when what it waits for is done.
        """
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.sleep(CANCEL_AGAIN_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        # A task that died of its own tasks' deaths has nothing to add.
        if error is not None and not isinstance(error, TasksDied):
            _LOG.error("task.died", task=task.get_name(), error=type(error).__name__)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; again where a cancellation was swallowed."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a service until SIGTERM or SIGINT.

    Args:
        main: gets an event that is set when the service should stop, and returns when it has.

    Returns:
        The exit status: 0 after a clean stop, 78 for a bad configuration, 1 when a task died.
    """

    async def runner() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        uvloop.run(runner())
    except Exception as error:  # noqa: BLE001 - the last frame: logged, and an exit status
        faults = _config_faults(error)
        if faults:
            _LOG.error("config.refused", faults=faults)
            return EX_CONFIG
        _LOG.exception("service.died")
        return 1
    return 0


def _config_faults(error: BaseException) -> list[str]:
    """Find what a service says of its configuration; a task's error arrives in a group."""
    if isinstance(error, ConfigError):
        return error.faults
    if isinstance(error, BaseExceptionGroup):
        return [fault for one in error.exceptions for fault in _config_faults(one)]
    return []

"""Supervised tasks end with their supervisor, whatever they do about it."""

from __future__ import annotations

import asyncio

import pytest

from kvatlas.common.errors import ConfigError
from kvatlas.common.tasks import EX_CONFIG, Supervisor, run_service


async def stubborn(cancellations: list[int]) -> None:
    """Swallow the first cancellation, as `asyncio.wait_for` does at an unlucky moment."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancellations.append(1)
            if len(cancellations) > 1:
                raise


async def test_a_cancellation_that_is_swallowed_is_repeated() -> None:
    """Leaving the supervisor ends every task."""
    cancellations: list[int] = []
    async with asyncio.timeout(5), Supervisor() as tasks:
        task = tasks.start(stubborn(cancellations), "stubborn")
        await asyncio.sleep(0)
    assert task.cancelled()
    assert len(cancellations) == 2


async def test_a_dead_task_ends_the_others() -> None:
    """Its exception leaves the supervisor, and nothing runs on."""

    async def die() -> None:
        raise ValueError("dead")

    others: list[asyncio.Task[None]] = []

    async def run() -> None:
        async with asyncio.timeout(5), Supervisor() as tasks:
            others.append(tasks.start(stubborn([]), "stubborn"))
            await asyncio.sleep(0)
            tasks.start(die(), "dies")
            await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup, match="unhandled") as caught:
        await run()
    assert isinstance(caught.value.exceptions[0], ValueError)
    assert others[0].cancelled()


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError(["redis: no"]), EX_CONFIG), (KeyError("x"), 1)]
)
def test_a_service_ends_with_a_status_that_tells_why(error: Exception, status: int) -> None:
    """What is wrong with a configuration may show only in a task; all else is no fault of it."""

    async def die() -> None:
        raise error

    async def main(stop: asyncio.Event) -> None:
        async with Supervisor() as supervisor:
            supervisor.start(die(), "dies")
            await stop.wait()

    assert run_service(main) == status

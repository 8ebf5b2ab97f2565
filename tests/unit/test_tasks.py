"""Supervised tasks end with their supervisor, whatever they do to a cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from kvatlas.common import tasks
from kvatlas.common.errors import ConfigError
from kvatlas.common.tasks import EX_CONFIG, Supervisor, run_service


async def test_a_cancellation_that_was_swallowed_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library that loses a cancellation delays the end, it does not prevent it."""
    monkeypatch.setattr(tasks, "CANCEL_AGAIN_S", 0.02)
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost += 1
        await asyncio.sleep(60)

    async with asyncio.timeout(5), Supervisor() as supervisor:
        supervisor.start(deaf(), "deaf")
        await asyncio.sleep(0)
    assert lost == 1


def test_a_task_that_refuses_the_configuration_ends_the_service_with_78() -> None:
    """What is wrong with a configuration may show only in a task."""

    async def refuse() -> None:
        raise ConfigError(["redis: no"])

    async def main(stop: asyncio.Event) -> None:
        async with Supervisor() as supervisor:
            supervisor.start(refuse(), "refuse")
            await stop.wait()

    assert run_service(main) == EX_CONFIG


def test_a_task_that_dies_ends_the_service_with_1() -> None:
    """Any other error is no fault of the configuration."""

    async def die() -> None:
        raise KeyError("x")

    async def main(stop: asyncio.Event) -> None:
        async with Supervisor() as supervisor:
            supervisor.start(die(), "die")
            await stop.wait()

    assert run_service(main) == 1

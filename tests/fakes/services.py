"""Our own services, run in a test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer
from kvatlas.indexer.discovery import sources_of


@asynccontextmanager
async def indexing(settings: Settings, *, follows: bool = True) -> AsyncIterator[Indexer]:
    """Run an indexer until the context ends; its death is an error there.

    Args:
        settings: the configuration.
        follows: wait until every endpoint is the indexer's.
    """
    indexer, stop = Indexer(settings), asyncio.Event()
    task = asyncio.create_task(indexer.serve(stop))
    try:
        if follows:
            await _following(indexer, len(sources_of(settings, settings.endpoints)), task)
        yield indexer
    finally:
        stop.set()
        await asyncio.wait_for(task, 5)


async def _following(indexer: Indexer, endpoints: int, task: asyncio.Task[None]) -> None:
    for _ in range(2_000):
        if len(indexer.feeds) >= endpoints or task.done():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(len(indexer.feeds))

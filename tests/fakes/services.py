"""Our own services, run in a test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvatlas.common.settings import Settings
from kvatlas.indexer.app import Indexer


@asynccontextmanager
async def indexing(settings: Settings) -> AsyncIterator[Indexer]:
    """Run an indexer until the context ends; its death is an error there."""
    indexer, stop = Indexer(settings), asyncio.Event()
    task = asyncio.create_task(indexer.serve(stop))
    try:
        yield indexer
    finally:
        stop.set()
        await asyncio.wait_for(task, 5)

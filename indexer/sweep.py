"""Give back the space of past epochs, in small steps, behind everybody's back.

Readers ignore the holders of past epochs at once; their ids stay in entries until a pass over all
buckets has taken them out, and are not given to others before that.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kvatlas.common.keyspace import BUCKETS, Shard
from kvatlas.common.log import logger
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.targets import Dead

_LOG = logger("sweep")

STEP_S: Final = 0.002
"""Between two steps, so that a sweep takes a fraction of Redis."""


async def sweep_once(store: IndexStore, shard: Shard, dead: Dead, metrics: IndexerMetrics) -> None:
    """Take dead holders out of every bucket, then free their ids.

    Raises:
        IndexUnavailable: Redis failed on the way; the next pass begins anew.
    """
    changed = 0
    for windowed in (False, True) if dead.has_windowed else (False,):
        at = 0
        while at < BUCKETS:
            at, entries = await store.sweep(shard, dead, at, windowed=windowed)
            changed += entries
            await asyncio.sleep(STEP_S)
    await store.release(shard, dead)
    metrics.entries_swept.inc(changed)
    _LOG.info("holders.swept", shard=shard.base, holders=len(dead.texts), entries=changed)

"""One endpoint that this indexer owns: socket, feed and mirror, from its claim to its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zmq.asyncio

from kvatlas.common import limits
from kvatlas.common.ids import Fence
from kvatlas.common.log import logger
from kvatlas.common.tasks import Supervisor, ended
from kvatlas.indexer.apply import EndpointCache
from kvatlas.indexer.discovery import Source
from kvatlas.indexer.feed import Feed
from kvatlas.indexer.metrics import IndexerMetrics
from kvatlas.indexer.mirror import Mirror
from kvatlas.indexer.recall import recalled
from kvatlas.indexer.store import IndexStore
from kvatlas.indexer.subscriber import Subscriber
from kvatlas.indexer.targets import Remembered, Target
from kvatlas.indexer.turns import Turns

_LOG = logger("following")


@dataclass(frozen=True, slots=True)
class Means:
    """What all followings of a process share.

    Attributes:
        replay_slots: bounds the replays of the process.
        turns: bound how long the process takes events at a stretch.
    """

    context: zmq.asyncio.Context
    store: IndexStore
    metrics: IndexerMetrics
    replay_slots: asyncio.Semaphore
    turns: Turns


class Following:
    """Follow one endpoint.

    Args:
        source: the endpoint.
        fence: of the claim.
        means: what followings share.
        left: what the former owner has left, None where it is nothing.
    """

    def __init__(self, source: Source, fence: Fence, means: Means, left: Remembered | None) -> None:
        endpoint = source.endpoint
        self.source = source
        has_replay = source.replay is not None
        # Without a replay nothing tells whether the engine's life is still the same.
        recall = recalled(endpoint.model, left) if has_replay else None
        cache = recall.cache if recall else EndpointCache(endpoint.model)
        target = Target(endpoint.name, source.shard, fence)
        self.mirror = Mirror(target, cache, means.store, means.metrics)
        self.feed = Feed(
            self.mirror,
            means.metrics,
            has_replay=has_replay,
            recall=recall,
            block_size=source.block_size,
        )
        self.subscriber = Subscriber(
            means.context, source, self.feed, means.replay_slots, means.turns
        )
        self._metrics = means.metrics
        self._tasks: list[asyncio.Task[None]] = []
        _LOG.info("endpoint.followed", endpoint=endpoint.name, resumes=recall is not None)
        means.metrics.claims.labels("resumed" if recall else "anew").inc()

    @property
    def fence(self) -> Fence:
        """Give the fence of the claim that stands."""
        return self.mirror.target.fence

    def start(self, tasks: Supervisor) -> None:
        """Subscribe and write, until stopped."""
        name = self.feed.name
        self._tasks = [
            tasks.start(self.subscriber.run(), f"subscriber {name}"),
            tasks.start(self.mirror.run(), f"mirror {name}"),
        ]

    async def stop(self) -> None:
        """Take no more events, write what is left as far as Redis lets us, and end."""
        subscribing, writing = self._tasks
        await ended(subscribing)
        try:
            async with asyncio.timeout(limits.LEAVE_S):
                await self.mirror.finish()
        except TimeoutError:
            _LOG.warning("endpoint.left_behind", endpoint=self.feed.name)
        await ended(writing)
        self._metrics.leave(self.feed.name)

    async def abandon(self) -> None:
        """End at once; the endpoint is another's."""
        for task in self._tasks:
            await ended(task)
        self._metrics.leave(self.feed.name)

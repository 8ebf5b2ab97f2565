"""Follow a test's API server, without waiting as long as one does in life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from kvatlas.common.kube import counts
from kvatlas.common.kube.access import ApiAccess
from kvatlas.common.kube.client import KubeClient
from kvatlas.common.kube.watch import Api
from kvatlas.common.tasks import Supervisor
from tests.fakes.api_server import TOKEN, ApiServer


class KubeMetrics(counts.KubeMetrics):
    """A table with what is counted of watches."""

    prefix = "test_"

    def failures(self) -> set[str]:
        """Give the reasons of all failures."""
        return {values[1] for values in self.kube_failures._children}


def following(
    server: ApiServer, metrics: KubeMetrics | None = None, resync_s: float = 300.0
) -> Api:
    """Give how a server is followed."""

    async def find() -> ApiAccess:
        return ApiAccess(server.url, "demo", f"Bearer {TOKEN}")

    return Api(KubeClient(find), metrics or KubeMetrics(), resync_s, Random(7).random)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None], by: Api) -> AsyncIterator[None]:
    """Run a source or a watch until the context ends; its death is an error there."""
    try:
        async with Supervisor() as tasks:
            task = tasks.start(work, "followed")
            yield
            assert not task.done(), "it is for ever"
    finally:
        await by.client.aclose()


async def until(is_so: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait for something; give how long it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not is_so():
        assert loop.time() - begun < within_s, "it never came"
        await asyncio.sleep(0.001)
    return loop.time() - begun

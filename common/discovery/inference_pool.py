"""Endpoints of the ready pods of an InferencePool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvatlas.common.discovery.pod_endpoints import Place
from kvatlas.common.discovery.pods import PodEndpoints, faults_of
from kvatlas.common.discovery.source import Tell
from kvatlas.common.discovery_settings import PoolDiscovery
from kvatlas.common.kube.pod import Pod, read_pod
from kvatlas.common.kube.pool import Pool, read_pool
from kvatlas.common.kube.resources import PODS, POOLS, Selection, called
from kvatlas.common.kube.watch import Api, Watch
from kvatlas.common.log import logger
from kvatlas.common.tasks import Supervisor, ended

_LOG = logger("discovery")


class PoolSource:
    """Find endpoints in a pool.

    Args:
        api: how the API server is asked; the source's own.
        settings: which pool.
    """

    def __init__(self, api: Api, settings: PoolDiscovery) -> None:
        self._api = api
        self._settings = settings
        self._run: _Run | None = None

    @property
    def faults(self) -> Sequence[str]:
        """Tell why pool or pods are not followed at the moment."""
        return () if self._run is None else faults_of(self._run.pools, self._run.pods)

    async def run(self, tell: Tell) -> None:
        """Follow it, for ever."""
        self._run = _Run(self._api, self._settings, tell)
        try:
            await self._run.run()
        finally:
            await self._api.client.aclose()


class _Run:
    """One run of a source.

    The pool and its pods are two watches. What selects other pods ends the latter and begins
    another; until that has been listed, the endpoints are those that were told last. Other ports,
    and a pool that is gone, are told at once.
    """

    def __init__(self, api: Api, settings: PoolDiscovery, tell: Tell) -> None:
        self._api = api
        self._settings = settings
        self._tell = tell
        namespace, name = settings.namespace, settings.name
        resource = POOLS[settings.group]
        watch = called(resource, namespace, name)
        selection = Selection(resource, namespace, watch, name=name)
        self.pools = Watch(api, selection, read_pool, self._pool_told)
        self._pods_name = called(PODS, namespace, name)
        self._endpoints = PodEndpoints(self._pods_name, api.metrics)
        self.pods: Watch[Pod] | None = None
        self._selected: str | None = None
        self._selects_others = asyncio.Event()

    async def run(self) -> None:
        async with Supervisor() as tasks:
            tasks.start(self.pools.run(), "pool")
            following: asyncio.Task[None] | None = None
            while True:
                await self._selects_others.wait()
                self._selects_others.clear()
                if following is not None:
                    await ended(following)
                    following = None
                # What is selected by now, which may be another thing than when it was told.
                if self._selected is not None:
                    self.pods = self._watch_of(self._selected)
                    following = tasks.start(self.pods.run(), "pods")

    def _pool(self) -> Pool | None:
        return self.pools.objects.by_name.get(self._settings.name)

    def _pool_told(self) -> None:
        pool = self._pool()
        if pool is None:
            _LOG.warning("pool.absent", pool=self._settings.name, group=self._settings.group)
            self._tell([])
        selected = pool.labels() if pool is not None else None
        if selected != self._selected:
            self._selected, self.pods = selected, None
            self._selects_others.set()
        self._pods_told()

    def _pods_told(self) -> None:
        pool, pods = self._pool(), self.pods
        if pool is not None and pods is not None and pods.is_known:
            name = f"{pool.namespace}/{pool.name}"
            place = Place(self._settings, pool.ports, name)
            self._tell(self._endpoints.of(pods.objects.by_name, place))

    def _watch_of(self, labels: str) -> Watch[Pod]:
        namespace = self._settings.namespace
        selection = Selection(PODS, namespace, self._pods_name, labels=labels)
        return Watch(self._api, selection, read_pod, self._pods_told)

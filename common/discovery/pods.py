"""Endpoints of ready pods that a label selector selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvatlas.common.discovery.pod_endpoints import NOTHING, Found, Place, endpoints_of
from kvatlas.common.discovery.source import Tell
from kvatlas.common.discovery_settings import PodsDiscovery
from kvatlas.common.kube.counts import KubeMetrics
from kvatlas.common.kube.pod import Pod, read_pod
from kvatlas.common.kube.resources import PODS, Selection, called
from kvatlas.common.kube.watch import Api, Watch
from kvatlas.common.log import logger
from kvatlas.common.settings import EndpointSettings

_LOG = logger("discovery")


class PodEndpoints:
    """Turn pods into endpoints, each only when it has changed.

    Args:
        watch: what the pods' watch is called.
    """

    def __init__(self, watch: str, metrics: KubeMetrics) -> None:
        self._watch = watch
        self._metrics = metrics
        self._place: Place | None = None
        self._made: dict[str, tuple[Pod, Found]] = {}

    def of(self, pods: Mapping[str, Pod], place: Place) -> list[EndpointSettings]:
        """Give the endpoints of all pods; of two pods at one address, those of the younger."""
        before = self._made if place == self._place else {}
        self._place = place
        made: dict[str, tuple[Pod, Found]] = {}
        for name, pod in pods.items():
            known = before.get(name)
            if known is None or known[0] is not pod:
                known = pod, self._made_of(pod, place)
            made[name] = known
        self._made = made
        serving = sorted(
            (each for each in made.values() if each[1].endpoints),
            key=lambda each: (each[0].created, each[0].name),
        )
        by_url = {endpoint.url: endpoint for _, found in serving for endpoint in found.endpoints}
        return list(by_url.values())

    def _made_of(self, pod: Pod, place: Place) -> Found:
        found = endpoints_of(pod, place)
        # Said once, not with each of a pod's many changes.
        _, former = self._made.get(pod.name, (None, NOTHING))
        for annotation in set(found.ignored) - set(former.ignored):
            self._metrics.kube_ignored.labels(self._watch, "annotation").inc()
            _LOG.warning("pod.annotation_ignored", pod=pod.name, annotation=annotation)
        return found


class PodsSource:
    """Find endpoints among pods.

    Args:
        api: how the API server is asked; the source's own.
        settings: which pods.
    """

    def __init__(self, api: Api, settings: PodsDiscovery) -> None:
        self._api = api
        self._watch: Watch[Pod] | None = None
        self._place = Place(settings, tuple(settings.ports))
        self._selection = Selection(
            PODS,
            settings.namespace,
            called(PODS, settings.namespace, f"({settings.selector})"),
            labels=settings.selector,
        )

    @property
    def faults(self) -> Sequence[str]:
        """Tell why they are not followed at the moment."""
        return faults_of(self._watch)

    async def run(self, tell: Tell) -> None:
        """Follow them, for ever."""
        endpoints = PodEndpoints(self._selection.watch, self._api.metrics)

        def told() -> None:
            tell(endpoints.of(watch.objects.by_name, self._place))

        self._watch = watch = Watch(self._api, self._selection, read_pod, told)
        try:
            await watch.run()
        finally:
            await self._api.client.aclose()


def faults_of(*watches: Watch[Any] | None) -> list[str]:
    """Tell why watches are not followed at the moment."""
    return [watch.fault for watch in watches if watch is not None and watch.fault is not None]

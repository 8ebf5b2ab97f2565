"""How places where endpoints are found are; declared once for routers and indexers."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.kube.counts import KubeMetrics
from kvatlas.common.metrics import counter, gauge


class DiscoveryMetrics(KubeMetrics):
    """The table of how places are, and what is watched there; by itself shown to nobody."""

    discovery_in_sync = gauge(
        "discovery_in_sync",
        "source",
        "0 or 1",
        "1 while a place of `discovery` tells its endpoints; 0 before it has, or when it failed"
        " last: then what it told before counts.",
        "0 for long: `source.failed` in the log says why",
    )
    discovery_endpoints = gauge(
        "discovery_endpoints", "source", "engines", "Engines that a place of `discovery` tells."
    )
    discovery_failures = counter(
        "discovery_failures",
        "source",
        "failures",
        "Failures of a place of `discovery`; it is asked again after pauses that grow.",
        "at a rate: `source.failed` in the log says why",
    )
    discovery_left_out = gauge(
        "discovery_left_out",
        "reason",
        "engines",
        "Engines that were found and are not used: not asked for their model yet (`unasked`),"
        " serving none that is configured (`other_model`), in the list already (`repeated`),"
        " beyond the bound (`over_limit`).",
        "`endpoints.left_out` in the log names them",
    )


@dataclass(frozen=True, slots=True)
class SourceGauges:
    """Where it is told how places are; by default nowhere that anybody looks."""

    metrics: DiscoveryMetrics = field(default_factory=DiscoveryMetrics)

    def tell(self, label: str, *, endpoints: int, is_in_sync: bool) -> None:
        """Say how a place is."""
        self.metrics.discovery_in_sync.labels(label).set(is_in_sync)
        self.metrics.discovery_endpoints.labels(label).set(endpoints)

    def failed(self, label: str) -> None:
        """Count a failure."""
        self.metrics.discovery_failures.labels(label).inc()

    def forget(self, label: str) -> None:
        """Say nothing more of a place."""
        metrics = self.metrics
        metrics.discovery_in_sync.remove(label)
        metrics.discovery_endpoints.remove(label)
        metrics.discovery_failures.remove(label)

    def merged(self, fleet: Fleet) -> None:
        """Say how many were left out."""
        for reason, names in fleet.left_out.items():
            self.metrics.discovery_left_out.labels(reason).set(len(names))

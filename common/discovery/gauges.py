"""How places where endpoints are found are; declared once for routers and indexers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvatlas.common.discovery.merging import Fleet
from kvatlas.common.kube.counts import KubeCounts, KubeTable
from kvatlas.common.metrics import Counter, Gauge, counter, gauge

IN_SYNC: Final = gauge(
    "discovery_in_sync",
    "source",
    "0 or 1",
    "1 while a place of `discovery` tells its endpoints; 0 before it has, or when it failed last:"
    " then what it told before counts.",
    "0 for long: `source.failed` in the log says why",
)
FOUND: Final = gauge(
    "discovery_endpoints", "source", "engines", "Engines that a place of `discovery` tells."
)
FAILURES: Final = counter(
    "discovery_failures",
    "source",
    "failures",
    "Failures of a place of `discovery`; it is asked again after pauses that grow.",
    "at a rate: `source.failed` in the log says why",
)
LEFT_OUT: Final = gauge(
    "discovery_left_out",
    "reason",
    "engines",
    "Engines that were found and are not used: not asked for their model yet (`unasked`), serving"
    " none that is configured (`other_model`), in the list already (`repeated`), beyond the bound"
    " (`over_limit`).",
    "`endpoints.left_out` in the log names them",
)


class Declares(KubeTable, Protocol):
    """A table of metrics that has those above, and those of watches."""

    discovery_in_sync: Gauge
    discovery_endpoints: Gauge
    discovery_failures: Counter
    discovery_left_out: Gauge


def source_gauges(metrics: Declares) -> SourceGauges:
    """Tell a service's metrics."""
    return SourceGauges(
        metrics.discovery_in_sync,
        metrics.discovery_endpoints,
        metrics.discovery_failures,
        metrics.discovery_left_out,
        metrics,
    )


@dataclass(frozen=True, slots=True)
class SourceGauges:
    """Where it is told how places are, and how what they watch; by default nowhere."""

    in_sync: Gauge | None = None
    found: Gauge | None = None
    failures: Counter | None = None
    left_out: Gauge | None = None
    watches: KubeTable = field(default_factory=KubeCounts)

    def tell(self, label: str, *, endpoints: int, is_in_sync: bool) -> None:
        """Say how a place is."""
        if self.in_sync is not None and self.found is not None:
            self.in_sync.labels(label).set(is_in_sync)
            self.found.labels(label).set(endpoints)

    def failed(self, label: str) -> None:
        """Count a failure."""
        if self.failures is not None:
            self.failures.labels(label).inc()

    def forget(self, label: str) -> None:
        """Say nothing more of a place."""
        for each in (self.in_sync, self.found, self.failures):
            if each is not None:
                each.remove(label)

    def merged(self, fleet: Fleet) -> None:
        """Say how many were left out."""
        if self.left_out is not None:
            counts: Mapping[str, int] = {r: len(names) for r, names in fleet.left_out.items()}
            for reason, count in counts.items():
                self.left_out.labels(reason).set(count)

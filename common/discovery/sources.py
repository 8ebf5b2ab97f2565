"""Which source an entry of `discovery` is: the one place to add a kind."""

from __future__ import annotations

from kvatlas.common.discovery.dns import DnsSource
from kvatlas.common.discovery.files import FileSource
from kvatlas.common.discovery.inference_pool import PoolSource
from kvatlas.common.discovery.pods import PodsSource
from kvatlas.common.discovery.source import EndpointSource
from kvatlas.common.discovery_settings import (
    AnyDiscovery,
    DnsDiscovery,
    FileDiscovery,
    KubernetesSettings,
    PodsDiscovery,
    PoolDiscovery,
)
from kvatlas.common.kube.counts import KubeMetrics
from kvatlas.common.kube.watch import api_of


def source_of(
    entry: AnyDiscovery, kubernetes: KubernetesSettings, counts: KubeMetrics
) -> EndpointSource:
    """Make what looks at a place.

    Args:
        entry: of the configuration.
        kubernetes: how the API server is reached.
        counts: told how its objects are watched.
    """
    match entry:
        case DnsDiscovery():
            return DnsSource(entry)
        case FileDiscovery():
            return FileSource(entry)
        case PodsDiscovery():
            return PodsSource(api_of(kubernetes, counts), entry)
        case PoolDiscovery():
            return PoolSource(api_of(kubernetes, counts), entry)

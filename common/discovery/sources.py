"""Which source an entry of `discovery` is: the one place to add a kind."""

from __future__ import annotations

from kvatlas.common.discovery.dns import DnsSource
from kvatlas.common.discovery.files import FileSource
from kvatlas.common.discovery.source import EndpointSource
from kvatlas.common.discovery_settings import (
    AnyDiscovery,
    DnsDiscovery,
    FileDiscovery,
    KubernetesSettings,
)
from kvatlas.common.errors import ConfigError


def source_of(entry: AnyDiscovery, kubernetes: KubernetesSettings) -> EndpointSource:  # noqa: ARG001 - for kinds to come
    """Make what looks at a place.

    Args:
        entry: of the configuration.
        kubernetes: how the API server is reached.

    Raises:
        ConfigError: the entry cannot be used.
    """
    match entry:
        case DnsDiscovery():
            return DnsSource(entry)
        case FileDiscovery():
            return FileSource(entry)
        case _:
            raise ConfigError([f"discovery: there is no source of kind {entry.kind!r}"])

"""Endpoints as they are found: addresses, and what the configuration says of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final, NamedTuple

from kvatlas.common import limits
from kvatlas.common.discovery_settings import (
    AnyDiscovery,
    Discovery,
    DnsDiscovery,
    FileDiscovery,
    PodsDiscovery,
)
from kvatlas.common.setting_sections import EndpointSettings, EventStream

_PORT_MAX: Final = 65_535


class AskedEndpoint(EndpointSettings):
    """An endpoint whose engine has told where its events are.

    Attributes:
        told: where, per rank.
    """

    told: tuple[EventStream, ...]

    def streams(self) -> tuple[EventStream, ...]:
        """Tell where the events of each rank are."""
        return self.told


class Addresses(NamedTuple):
    """Where the events of an engine are; neither where it has none, or is to be asked."""

    events: str | None = None
    replay: str | None = None


def events_at(entry: Discovery, host: str, place: int = 0) -> Addresses:
    """Say where the events of an engine are, as far as an entry does.

    Args:
        entry: of the configuration.
        host: of the engine, in brackets if it is an address of IPv6.
        place: of its port among those of its host.
    """
    if entry.events_port == "ask":
        return Addresses()
    events = _address(host, entry.events_port, place)
    return Addresses(events, events and _address(host, entry.replay_port, place))


def _address(host: str, port: int | None, place: int) -> str | None:
    """Write an address of ZMQ; None where there is no port, or none so high."""
    if port is None or port + place > _PORT_MAX:
        return None
    return f"tcp://{host}:{port + place}"


def endpoint_at(
    entry: Discovery,
    host: str,
    port: int,
    place: int = 0,
    labels: Mapping[str, str] | None = None,
) -> EndpointSettings:
    """Make an endpoint of an address.

    Args:
        entry: of the configuration, that it was found by.
        host: name or address; brackets are put around one of IPv6.
        port: where it serves.
        place: of its port among those of its host.
        labels: that it was found with; those of the entry count more.

    Raises:
        ValueError: it cannot be one.
    """
    where = f"[{host}]" if ":" in host and not host.startswith("[") else host
    events = events_at(entry, where, place)
    all_labels = {
        **entry.labels,
        **{k: v for k, v in (labels or {}).items() if k not in entry.labels},
    }
    return EndpointSettings(
        url=f"{entry.scheme}://{where}:{port}",
        model=entry.model or "",
        events=events.events,
        replay=events.replay,
        api_key_file=entry.api_key_file,
        labels=dict(islice(all_labels.items(), limits.LABELS_PER_ENDPOINT_MAX)),
    )


def label_of(position: int, entry: AnyDiscovery) -> str:
    """Name a place in metrics and logs, by nothing but the configuration."""
    match entry:
        case DnsDiscovery():
            name = entry.host
        case FileDiscovery():
            name = str(entry.path)
        case PodsDiscovery():
            name = entry.selector
        case _:
            name = entry.name
    return f"{position}/{entry.kind}/{name}"

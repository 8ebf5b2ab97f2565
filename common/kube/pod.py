"""What is kept of a pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from msgspec import Raw, Struct
from msgspec import field as named
from msgspec.json import Decoder

from kvatlas.common.kube.objects import Metadata, Text

OURS: Final = "kvatlas.dev/"
ACTIVE_PORTS: Final = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""The first that a pod has counts."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod.

    Attributes:
        host: its address, in brackets if it is of IPv6; None while it takes no requests: not
            ready, terminating, or without an address. Then the rest but its name is empty, too.
        created: when; sorts.
        annotations: those that we read.
    """

    name: str
    host: str | None = None
    namespace: str = ""
    created: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class _Condition(Struct):
    type: Text = None
    status: Text = None


class _Address(Struct):
    ip: Text = None


class _Status(Struct):
    address: Text = named(default=None, name="podIP")
    addresses: list[_Address] | None = named(default=None, name="podIPs")
    conditions: list[_Condition] | None = None


class _Pod(Struct):
    metadata: Metadata
    status: _Status | None = None


_PODS: Final = Decoder(_Pod)


def read_pod(item: bytes | Raw) -> Pod:
    """Read a pod.

    Raises:
        ValueError: it is none.
    """
    read = _PODS.decode(item)
    metadata, host = read.metadata, _host(read)
    if host is None:
        return Pod(metadata.name)
    annotations = metadata.annotations or {}
    return Pod(
        metadata.name,
        host,
        metadata.namespace or "",
        metadata.created,
        metadata.labels or {},
        {k: v for k, v in annotations.items() if k.startswith(OURS) or k in ACTIVE_PORTS},
    )


def _host(pod: _Pod) -> str | None:
    """Give the address that requests go to, if they may."""
    status = pod.status
    if status is None or pod.metadata.deletion_timestamp is not None:
        return None
    if not any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()):
        return None
    first = next((each.ip for each in status.addresses or () if each.ip), status.address)
    if not first:
        return None
    address = ip_address(first)
    return f"[{address}]" if address.version == 6 else str(address)

"""What is kept of an InferencePool. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from kvatlas.common.kube.objects import Metadata

PORTS_MAX: Final = 8
"""Target ports of a pool; the API's own bound."""

Port = Annotated[int, Meta(ge=1, le=65_535)]


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool.

    Attributes:
        selector: labels that its pods have, all of them.
        ports: that engines listen on, rank by rank.
    """

    name: str
    namespace: str
    selector: Mapping[str, str]
    ports: tuple[int, ...]

    def labels(self) -> str:
        """Write the selector as the API takes it."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))


class _Target(Struct):
    number: Port


class _Spec(Struct, rename="camel"):
    selector: dict[str, Any] | None = None
    target_ports: list[_Target] | None = None
    target_port_number: Port | None = None


class _Pool(Struct):
    metadata: Metadata
    spec: _Spec


_POOLS: Final = Decoder(_Pool)


def read_pool(item: bytes | Raw) -> Pool:
    """Read a pool, of v1 or as v1alpha2 had it: a plain map for a selector, and one port.

    Raises:
        ValueError: it is none, or it selects everything.
    """
    read = _POOLS.decode(item)
    selector = read.spec.selector or {}
    if isinstance(selector.get("matchLabels"), dict):
        selector = selector["matchLabels"]
    if not selector or not all(isinstance(value, str) for value in selector.values()):
        raise ValueError("no selector")
    ports = [target.number for target in read.spec.target_ports or ()]
    if not ports and read.spec.target_port_number is not None:
        ports = [read.spec.target_port_number]
    if not 1 <= len(ports) <= PORTS_MAX or len(set(ports)) != len(ports):
        raise ValueError("no ports, too many, or one twice")
    metadata = read.metadata
    return Pool(metadata.name, metadata.namespace or "", selector, tuple(ports))

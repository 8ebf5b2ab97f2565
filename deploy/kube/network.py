"""Who may reach whom, by NetworkPolicies as Kubernetes reads them. Pure.

A connection is let through when the policies of its source that speak of egress have a rule for it,
or there is none, and so have those of its target that speak of ingress.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from deploy.kube.documents import NAMESPACE, Document, labels, matches, of_kind, ports, workloads


class Port(NamedTuple):
    """A port that something listens on."""

    number: int
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True)
class Place:
    """One end of a connection.

    Attributes:
        labels: of a pod; None for what is no pod, which no policy holds back.
        namespace: its labels.
        address: by which blocks of addresses know it.
        ports: that it listens on.
    """

    name: str
    address: str
    labels: Mapping[str, str] | None = None
    namespace: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()


class Flow(NamedTuple):
    """A connection: who may reach whom, where."""

    source: str
    target: str
    port: str

    def __str__(self) -> str:
        return f"{self.source} to {self.target}:{self.port}"


NOBODY_LISTENS = Port(1, "other")
"""Stands for all ports that are not named: a policy without ports opens it, too."""
DIRECTIONS: Final = ("Ingress", "Egress")
OURS: Mapping[str, str] = {"kubernetes.io/metadata.name": NAMESPACE}


def places(documents: list[Document]) -> list[Place]:
    """Give a place for each workload; pods stand for all others of theirs."""
    return [
        Place(
            labels(workload)["app.kubernetes.io/name"],
            f"10.1.0.{number + 1}",
            labels(workload),
            OURS,
            (*(Port(port, name) for name, port in ports(workload).items()), NOBODY_LISTENS),
        )
        for number, workload in enumerate(workloads(documents))
    ]


def flows(
    documents: list[Document],
    others: Iterable[Place] = (),
    directions: tuple[str, ...] = DIRECTIONS,
) -> set[Flow]:
    """List every connection that the policies let through.

    Args:
        documents: workloads and policies of our namespace.
        others: what else there is, as sources and targets.
        directions: whose policies count: the target's ("Ingress"), the source's ("Egress").
    """
    policies = of_kind(documents, "NetworkPolicy")
    ours = places(documents)
    everybody = [*ours, *others]
    return {
        Flow(source.name, target.name, port.name or str(port.number))
        for source in everybody
        for target in everybody
        # What others say to each other is no matter of these policies.
        if source in ours or target in ours
        for port in target.ports
        if may_reach(policies, (source, target), port, directions)
    }


def may_reach(
    policies: list[Document],
    ends: tuple[Place, Place],
    port: Port,
    directions: tuple[str, ...] = DIRECTIONS,
) -> bool:
    """Tell whether a connection from the first end to the second is let through."""
    return all(
        _passes(policies, ends if direction == "Egress" else ends[::-1], port, direction)
        for direction in directions
    )


def _passes(
    policies: list[Document], ends: tuple[Place, Place], port: Port, direction: str
) -> bool:
    """Tell whether one end's policies let it through.

    Args:
        policies: all there are.
        ends: whose policies count, and the other end.
        port: of the target, whichever end that is.
        direction: "Ingress" or "Egress".
    """
    own, other = ends
    ruling = [policy for policy in policies if _rules(policy, own, direction)]
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return not ruling or any(
        _opens(rule, port) and _lets(rule.get(side), policy, other)
        for policy in ruling
        for rule in policy["spec"].get(key, [])
    )


def _rules(policy: Document, place: Place, direction: str) -> bool:
    spec = policy["spec"]
    implied = ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        place.labels is not None
        and _namespace_of(policy) == place.namespace.get("kubernetes.io/metadata.name")
        and direction in spec.get("policyTypes", implied)
        and matches(spec["podSelector"], dict(place.labels))
    )


def _namespace_of(policy: Document) -> str:
    name: str = policy["metadata"].get("namespace", NAMESPACE)
    return name


def _opens(rule: Document, port: Port) -> bool:
    """Tell whether a rule speaks of a port; names are those of the target's container."""
    if not rule.get("ports"):
        return True
    for given in rule["ports"]:
        wanted: Any = given.get("port")
        last = given.get("endPort", wanted)
        is_it = (
            wanted is None
            or wanted == port.name
            or (isinstance(wanted, int) and wanted <= port.number <= last)
        )
        if is_it and given.get("protocol", "TCP") == port.protocol:
            return True
    return False


def _lets(peers: list[Document] | None, policy: Document, other: Place) -> bool:
    return not peers or any(_is_peer(peer, policy, other) for peer in peers)


def _is_peer(peer: Document, policy: Document, other: Place) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ip_address(other.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(each) for each in block.get("except", [])
        )
    if other.labels is None:
        return False
    if "namespaceSelector" in peer:
        is_near = matches(peer["namespaceSelector"], dict(other.namespace))
    else:
        is_near = other.namespace.get("kubernetes.io/metadata.name") == _namespace_of(policy)
    return is_near and matches(peer.get("podSelector", {}), dict(other.labels))

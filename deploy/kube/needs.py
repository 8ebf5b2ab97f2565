"""Who must reach whom: the table that the policies are held against, both ways. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from deploy.kube.documents import (
    TAKERS,
    Document,
    labels,
    name_of,
    of_kind,
    pod,
    selected,
    title,
    workloads,
)
from deploy.kube.network import DIRECTIONS, Flow, Place, Port, flows
from deploy.kube.network import OURS as OUR_NAMESPACE

_OURS: Final = (*TAKERS, "indexer", "doctor")
OTHERS: Final = (
    Place("anybody", "10.9.0.1", {}, {"kubernetes.io/metadata.name": "default"}),
    # It lives beside us, and is nobody that we know.
    Place("neighbour", "10.9.0.2", {}, OUR_NAMESPACE),
    Place("gateway", "10.9.0.3", {}, {"kvatlas.dev/gateway": "true"}),
    Place("monitoring", "10.9.0.4", {}, {"kvatlas.dev/monitoring": "true"}),
    Place(
        "dns",
        "10.9.0.5",
        {},
        {"kubernetes.io/metadata.name": "kube-system"},
        (Port(53), Port(53, "53/UDP", "UDP"), Port(1)),
    ),
    Place("api-server", "10.0.0.1", ports=(Port(443), Port(6443), Port(22))),
    Place("internet", "203.0.113.7", ports=(Port(443), Port(80), Port(6379))),
    Place("metadata", "169.254.169.254", ports=(Port(80), Port(443))),
    Place("far-redis", "10.20.0.9", ports=(Port(6379),)),
)
"""What there is beside our workloads; ports that nobody needs stand for all such."""
_CLIENTS: Final = tuple(place.name for place in OTHERS if place.name != "neighbour")
_ALWAYS: Final = (
    (_CLIENTS, ("router",), ("http",)),
    (("gateway",), ("picker",), ("grpc",)),
    (("monitoring", "doctor"), (*TAKERS, "indexer"), ("admin",)),
    (_OURS, ("engine",), ("http",)),
    (("indexer", "doctor"), ("engine",), ("events", "replay")),
    (_OURS, ("redis",), ("redis",)),
    (_OURS, ("dns",), ("53", "53/UDP")),
)
"""Sources, targets, ports. Events carry prompts in the clear; Redis is trusted by its readers."""
_SENTINELS: Final = (
    ((*_OURS, "redis", "sentinel"), ("sentinel",), ("sentinel",)),
    (("redis", "sentinel"), ("redis",), ("redis",)),
    (("redis", "sentinel"), ("dns",), ("53", "53/UDP")),
)
_CLUSTER: Final = (
    (("redis",), ("redis",), ("redis", "bus")),
    (("redis-join",), ("redis",), ("redis",)),
    (("redis-join",), ("dns",), ("53", "53/UDP")),
)


def needed(documents: list[Document]) -> set[Flow]:
    """List the connections that these workloads cannot do without."""
    there = {name_of(workload) for workload in workloads(documents)}
    everybody = there | {place.name for place in OTHERS}
    rows = [*_ALWAYS, *(_SENTINELS if "sentinel" in there else ())]
    rows += _CLUSTER if "redis-join" in there else ()
    rows += [] if "redis" in there else [(_OURS, ("far-redis",), ("6379",))]
    if of_kind(documents, "InferencePool"):
        rows.append((("gateway",), ("engine",), ("http",)))
    for workload in workloads(documents):
        rows += _of_its_own(workload)
    return {
        Flow(source, target, port)
        for sources, targets, given in rows
        for source in everybody.intersection(sources)
        for target in everybody.intersection(targets)
        for port in given
    }


def _of_its_own(workload: Document) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Give what a workload needs for what it is told to do."""
    name = (name_of(workload),)
    if pod(workload).get("automountServiceAccountToken"):
        yield name, ("api-server",), ("443", "6443")
    if labels(workload).get("kvatlas.dev/hub"):
        yield name, ("internet",), ("443",)
        yield name, ("dns",), ("53", "53/UDP")


def policy_faults(documents: list[Document]) -> Iterator[str]:
    """List what the policies let through and need not, and the other way round.

    What need not be is closed at both ends, so that one policy may be wrong, or one node late.
    """
    if not workloads(documents):
        return
    wanted = needed(documents)
    public = {(flow.target, flow.port) for flow in wanted if flow.source == "anybody"}
    ours = {name_of(workload) for workload in workloads(documents)}
    for direction in DIRECTIONS:
        for flow in sorted(flows(documents, OTHERS, (direction,)) - wanted):
            if direction == "Egress" and flow.source in ours:
                yield f"NetworkPolicy: {flow} is open where it begins"
            elif direction == "Ingress" and flow.target in ours and flow[1:] not in public:
                yield f"NetworkPolicy: {flow} is open where it ends"
    for flow in sorted(wanted - flows(documents, OTHERS)):
        yield f"NetworkPolicy: {flow} is closed"
    for policy in of_kind(documents, "NetworkPolicy"):
        if not selected(documents, policy["spec"]["podSelector"]):
            yield f"{title(policy)}: selects nothing"

"""What documents name must be there: objects, ports, volumes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from deploy.kube.documents import (
    Document,
    containers,
    labels,
    matches,
    named,
    of_kind,
    pod,
    ports,
    selected,
    title,
    workloads,
)

_EVENTS: Final = ("events", "replay")


def reference_faults(documents: list[Document], secrets: set[str]) -> Iterator[str]:
    """List references that lead nowhere.

    Args:
        documents: all of a kustomization.
        secrets: that an operator makes, as the documentation says.
    """
    names = Counter((document["kind"], document["metadata"]["name"]) for document in documents)
    yield from (f"{kind}/{name}: is there twice" for (kind, name), n in names.items() if n > 1)
    for workload in workloads(documents):
        for kind, name in sorted(_objects(workload)):
            known = kind == "Secret" and name in secrets
            if not known and named(documents, kind, name) is None:
                yield f"{title(workload)}: there is no {kind} {name}"
        yield from (f"{title(workload)}: {fault}" for fault in _volume_faults(workload))
    yield from _selector_faults(documents)
    yield from _pool_faults(documents)
    yield from _monitor_faults(documents)


def _objects(workload: Document) -> Iterator[tuple[str, str]]:
    """Give what a workload's pods are made of, beside images."""
    specification = pod(workload)
    if "serviceAccountName" in specification:
        yield "ServiceAccount", specification["serviceAccountName"]
    for volume in specification.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in containers(workload):
        yield from _variables(container)
    if workload["kind"] == "StatefulSet":
        yield "Service", workload["spec"]["serviceName"]


def _variables(container: Document) -> Iterator[tuple[str, str]]:
    """Give where a container's variables come from."""
    for source in container.get("envFrom", []):
        yield "ConfigMap", source["configMapRef"]["name"]
    kinds = (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap"))
    for variable in container.get("env", []):
        chosen = variable.get("valueFrom", {})
        yield from ((kind, chosen[key]["name"]) for key, kind in kinds if key in chosen)


def _volume_faults(workload: Document) -> Iterator[str]:
    claims = workload["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in pod(workload).get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in claims}
    mounted = {m["name"] for c in containers(workload) for m in c.get("volumeMounts", [])}
    yield from (f"there is no volume {name}" for name in sorted(mounted - volumes))
    yield from (f"volume {name} is mounted nowhere" for name in sorted(volumes - mounted))


def _selector_faults(documents: list[Document]) -> Iterator[str]:
    for workload in workloads(documents):
        selector = workload["spec"].get("selector")
        if selector is not None and not matches(selector, labels(workload)):
            yield f"{title(workload)}: its selector does not match its pods"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        if not selected(documents, budget["spec"]["selector"]):
            yield f"{title(budget)}: selects nothing"
    for service in of_kind(documents, "Service"):
        targets = selected(documents, {"matchLabels": service["spec"]["selector"]})
        if not targets:
            yield f"{title(service)}: selects nothing"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in ports(target) for target in targets):
                yield f"{title(service)}: its pods have no port {port['targetPort']!r}"
            if port["targetPort"] in _EVENTS:
                yield f"{title(service)}: gives events an address"


def _pool_faults(documents: list[Document]) -> Iterator[str]:
    for pool in of_kind(documents, "InferencePool"):
        spec = pool["spec"]
        engines = selected(documents, spec["selector"])
        if not engines:
            yield f"{title(pool)}: selects nothing"
        for port in spec["targetPorts"]:
            if any(ports(engine)["http"] != port["number"] for engine in engines):
                yield f"{title(pool)}: its pods serve nothing on {port['number']}"
        asked = spec["endpointPickerRef"]
        service = named(documents, asked["kind"], asked["name"])
        known = service["spec"]["ports"] if service else []
        if asked["port"]["number"] not in {port["port"] for port in known}:
            yield f"{title(pool)}: there is no {asked['name']}:{asked['port']['number']}"
    for document, wanted in _wanted_by_routes(documents):
        if named(documents, wanted["kind"], wanted["name"]) is None:
            yield f"{title(document)}: there is no {wanted['kind']} {wanted['name']}"


def _wanted_by_routes(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Give what speaks of pools, and what it names."""
    for document in of_kind(documents, "InferenceObjective", "InferenceModelRewrite"):
        yield document, document["spec"]["poolRef"]
    for route in of_kind(documents, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            yield from ((route, backend) for backend in rule["backendRefs"])


def _monitor_faults(documents: list[Document]) -> Iterator[str]:
    for monitor in of_kind(documents, "ServiceMonitor"):
        services = [
            service
            for service in of_kind(documents, "Service")
            if matches(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        given = {port["name"] for service in services for port in service["spec"]["ports"]}
        if not services:
            yield f"{title(monitor)}: selects nothing"
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in given:
                yield f"{title(monitor)}: its Services have no port {endpoint['port']}"

"""Pods: Pod Security `restricted`, and what we ask beyond it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from deploy.kube.documents import (
    REPLICATED,
    TAKERS,
    Document,
    labels,
    matches,
    of_kind,
    pod,
    title,
    workloads,
)

_VOLUMES: Final = {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}
"""What a pod may mount; `restricted` allows a few more."""
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")


def pod_faults(documents: list[Document]) -> Iterator[str]:
    """List what is wrong with pods, and with the namespace they live in."""
    for workload in workloads(documents):
        yield from faults_of(workload)
    for namespace in of_kind(documents, "Namespace"):
        wanted = "pod-security.kubernetes.io/enforce"
        holds_pods = namespace["metadata"]["name"] == "kvatlas"
        if holds_pods and namespace["metadata"].get("labels", {}).get(wanted) != "restricted":
            yield f"{title(namespace)}: does not enforce restricted"


def faults_of(workload: Document) -> Iterator[str]:
    """List what is wrong with a workload's pods."""
    specification, name = pod(workload), title(workload)
    found = [*_security_faults(specification), *_spread_faults(workload)]
    is_served = workload["kind"] in REPLICATED
    for kind in ("initContainers", "containers"):
        for container in specification.get(kind, []):
            probed = is_served and kind == "containers"
            found += [
                f"{container['name']}: {fault}" for fault in _container_faults(container, probed)
            ]
    yield from (f"{name}: {fault}" for fault in found)


def _security_faults(specification: Document) -> Iterator[str]:
    security = specification.get("securityContext", {})
    if "automountServiceAccountToken" not in specification:
        yield "mounts a service account token"
    if specification.get("enableServiceLinks") is not False:
        yield "service links set variables that the configuration refuses"
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp profile is not RuntimeDefault"
    if any(specification.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "uses a namespace of the host"
    for volume in specification.get("volumes", []):
        if set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is of a kind that is not allowed"


def _spread_faults(workload: Document) -> Iterator[str]:
    """See to it that what has several pods, or may get them, is not all on one node."""
    if workload["kind"] not in REPLICATED or workload["spec"].get("replicas", 2) < 2:
        return
    constraints = pod(workload).get("topologySpreadConstraints", [])
    if not any(matches(each["labelSelector"], labels(workload)) for each in constraints):
        yield "its pods may all be on one node"


def _container_faults(container: Document, probed: bool) -> Iterator[str]:  # noqa: FBT001 - a fact
    security, resources = container.get("securityContext", {}), container.get("resources", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield "privileges may escalate"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written to"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if security.get("privileged") or "runAsUser" in security or "procMount" in security:
        yield "has rights of its own"
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        yield "its image has no fixed tag"
    for kind in ("requests", "limits"):
        yield from (f"no {kind}.{n}" for n in ("cpu", "memory") if n not in resources.get(kind, {}))
    if probed:
        yield from (f"no {n}" for n in ("livenessProbe", "readinessProbe") if n not in container)
    yield from _probe_faults(container)


def _probe_faults(container: Document) -> Iterator[str]:
    ports = container.get("ports", [])
    known = {port["name"] for port in ports} | {port["containerPort"] for port in ports}
    if any("hostPort" in port for port in ports):
        yield "takes a port of the host"
    for name in _PROBES:
        probe = container.get(name, {})
        asked = [probe[kind]["port"] for kind in ("httpGet", "tcpSocket", "grpc") if kind in probe]
        yield from (
            f"{name} asks port {port!r}, which it has not" for port in asked if port not in known
        )


def budget_faults(documents: list[Document]) -> Iterator[str]:
    """List disruption budgets and autoscalers that do not fit what they are for."""
    for workload in of_kind(documents, *REPLICATED):
        budgets = [
            budget
            for budget in of_kind(documents, "PodDisruptionBudget")
            if matches(budget["spec"]["selector"], labels(workload))
        ]
        if workload["spec"].get("replicas", 2) > 1 and len(budgets) != 1:
            yield f"{title(workload)}: has {len(budgets)} disruption budgets"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        aim = scaler["spec"]["scaleTargetRef"]
        found = [d for d in of_kind(documents, aim["kind"]) if d["metadata"]["name"] == aim["name"]]
        if not found or aim["name"] not in TAKERS:
            yield f"{title(scaler)}: scales nothing that takes requests"
        elif "replicas" in found[0]["spec"]:
            yield f"{title(scaler)}: each apply sets the number of {aim['name']}s"
        if scaler["spec"]["minReplicas"] < 2:
            yield f"{title(scaler)}: its budget lets no node be drained"

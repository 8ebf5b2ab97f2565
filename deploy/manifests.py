"""What must hold for every Kubernetes manifest of the repository, beyond being valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import yaml

from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings, load

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "k8s/base", ROOT / "k8s/overlays/vllm")

Document = dict[str, Any]
"""One manifest as kubectl renders it."""

_WORKLOADS = ("Deployment", "StatefulSet")
_NAME = "app.kubernetes.io/name"
_MAY_REACH = {
    ("engine", "events"): {"indexer"},
    ("engine", "replay"): {"indexer"},
    ("engine", "http"): {"indexer", "router"},
    ("redis", "redis"): {"indexer", "router"},
}
"""Who may reach what: events carry prompts in the clear, and Redis is trusted by all readers."""


def kubectl() -> str | None:
    """Find kubectl, which holds kustomize."""
    return shutil.which("kubectl")


def render(folder: Path) -> list[Document]:
    """Render a kustomization.

    Raises:
        RuntimeError: kubectl is missing, or refuses it.
    """
    command = kubectl()
    if command is None:
        raise RuntimeError("kubectl is not on the PATH")
    done = subprocess.run(
        [command, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def faults(documents: list[Document]) -> list[str]:
    """List everything that is wrong with a rendered kustomization."""
    return [
        *_invalid(documents),
        *(fault for document in _workloads(documents) for fault in _pod_faults(document)),
        *_selector_faults(documents),
        *_policy_faults(documents),
        *_reference_faults(documents),
        *_config_faults(documents),
    ]


def _title(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def _workloads(documents: list[Document]) -> list[Document]:
    return _of_kind(documents, *_WORKLOADS)


def _pod(workload: Document) -> Document:
    pod: Document = workload["spec"]["template"]["spec"]
    return pod


def _labels(workload: Document) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def _invalid(documents: list[Document]) -> Iterator[str]:
    version = kubernetes_validate.latest_version()
    for document in documents:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            yield f"{_title(document)}: {where}: {error.message}"


def _pod_faults(workload: Document) -> Iterator[str]:
    """Hold a pod against Pod Security `restricted` and what we ask beyond it."""
    pod, title = _pod(workload), _title(workload)
    security = pod.get("securityContext", {})
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{title}: mounts a service account token"
    if pod.get("enableServiceLinks") is not False:
        yield f"{title}: service links set variables that the configuration refuses"
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{title}: may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{title}: seccomp profile is not RuntimeDefault"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{title}: uses a namespace of the host"
    for kind in ("initContainers", "containers"):
        for container in pod.get(kind, []):
            for fault in _container_faults(container, probed=kind == "containers"):
                yield f"{title}: {container['name']}: {fault}"


def _container_faults(container: Document, *, probed: bool) -> Iterator[str]:
    security, resources = container.get("securityContext", {}), container.get("resources", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield "privileges may escalate"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written to"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        yield "its image has no fixed tag"
    for kind in ("requests", "limits"):
        yield from (f"no {kind}.{n}" for n in ("cpu", "memory") if n not in resources.get(kind, {}))
    if probed:
        yield from (f"no {n}" for n in ("livenessProbe", "readinessProbe") if n not in container)
    ports = {port["name"] for port in container.get("ports", [])}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container.get(name, {})
        port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
        if port is not None and port not in ports:
            yield f"{name} asks port {port!r}, which it has not"


def _matches(selector: Document, labels: dict[str, str]) -> bool:
    """Tell whether a label selector selects; only what our manifests use of the language."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


def _selected(documents: list[Document], selector: Document) -> list[Document]:
    return [item for item in _workloads(documents) if _matches(selector, _labels(item))]


def _port_names(workload: Document) -> set[str]:
    containers = _pod(workload)["containers"]
    return {port["name"] for container in containers for port in container.get("ports", [])}


def _selector_faults(documents: list[Document]) -> Iterator[str]:
    for workload in _workloads(documents):
        if not _matches(workload["spec"]["selector"], _labels(workload)):
            yield f"{_title(workload)}: its selector does not match its pods"
    for budget in _of_kind(documents, "PodDisruptionBudget"):
        if not _selected(documents, budget["spec"]["selector"]):
            yield f"{_title(budget)}: selects nothing"
    for service in _of_kind(documents, "Service"):
        targets = _selected(documents, {"matchLabels": service["spec"]["selector"]})
        if not targets:
            yield f"{_title(service)}: selects nothing"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in _port_names(target) for target in targets):
                yield f"{_title(service)}: its pods have no port {port['targetPort']!r}"
            if port["targetPort"] in ("events", "replay"):
                yield f"{_title(service)}: gives events an address"


def _policy_faults(documents: list[Document]) -> Iterator[str]:
    policies = _of_kind(documents, "NetworkPolicy")
    closed = [p for p in policies if not p["spec"]["podSelector"] and len(p["spec"]) == 2]
    if not any(set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"} for p in closed):
        yield "NetworkPolicy: none denies by default, both ways"
    for policy in policies:
        if not _selected(documents, policy["spec"]["podSelector"]):
            yield f"{_title(policy)}: selects nothing"
    for (name, port), wanted in _MAY_REACH.items():
        reached = _reachers(documents, policies, name, port)
        if reached != wanted:
            yield f"NetworkPolicy: {name}:{port} is open to {sorted(reached)}"
        allowed = _senders(documents, policies, name, port)
        if allowed != wanted:
            yield f"NetworkPolicy: {sorted(allowed)} may send to {name}:{port}"


def _target(documents: list[Document], name: str) -> Document:
    return next(item for item in _workloads(documents) if _labels(item)[_NAME] == name)


def _opens(rule: Document, port: str) -> bool:
    return "ports" not in rule or any(item["port"] == port for item in rule["ports"])


def _peers(documents: list[Document], rule: Document, side: str) -> set[str]:
    """Name the workloads on the other side of a rule; "*" is anybody, "outside" no pod of ours."""
    if not rule.get(side):
        return {"*"}
    names: set[str] = set()
    for peer in rule[side]:
        if "podSelector" in peer and "namespaceSelector" not in peer:
            names |= {_labels(w)[_NAME] for w in _selected(documents, peer["podSelector"])}
        else:
            names.add("outside")
    return names


def _reachers(
    documents: list[Document], policies: list[Document], name: str, port: str
) -> set[str]:
    """Name who may reach a port, by the policies of the pods that have it."""
    labels = _labels(_target(documents, name))
    names: set[str] = set()
    for policy in policies:
        if _matches(policy["spec"]["podSelector"], labels):
            for rule in policy["spec"].get("ingress", []):
                names |= _peers(documents, rule, "from") if _opens(rule, port) else set()
    return names


def _senders(documents: list[Document], policies: list[Document], name: str, port: str) -> set[str]:
    """Name who may send to a port, by the policies of the senders."""
    names: set[str] = set()
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            if _opens(rule, port) and {name, "*"} & _peers(documents, rule, "to"):
                chosen = _selected(documents, policy["spec"]["podSelector"])
                names |= {_labels(workload)[_NAME] for workload in chosen}
    return names


def _reference_faults(documents: list[Document]) -> Iterator[str]:
    maps = {item["metadata"]["name"] for item in _of_kind(documents, "ConfigMap")}
    for workload in _workloads(documents):
        pod = _pod(workload)
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for volume in pod.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{_title(workload)}: there is no ConfigMap {volume['configMap']['name']}"
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{_title(workload)}: there is no volume {mount['name']}"


def _config_faults(documents: list[Document]) -> Iterator[str]:
    for config in _of_kind(documents, "ConfigMap"):
        title = _title(config)
        with tempfile.TemporaryDirectory(prefix="kva-") as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(config["data"]["config.yaml"], encoding="utf-8")
            try:
                settings = load(path)
            except ConfigError as error:
                yield from (f"{title}: {fault}" for fault in error.faults)
                continue
        yield from (f"{title}: {fault}" for fault in _address_faults(documents, settings))


def _address_faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Find addresses in the configuration that no pod or Service of these manifests has."""
    if urlsplit(settings.redis.url).hostname not in {
        service["metadata"]["name"] for service in _of_kind(documents, "Service")
    }:
        yield "redis.url: no such Service"
    pods = {
        f"{owner['metadata']['name']}-{number}.{owner['spec']['serviceName']}": owner
        for owner in _of_kind(documents, "StatefulSet")
        for number in range(owner["spec"]["replicas"])
    }
    configured = {urlsplit(endpoint.url).hostname for endpoint in settings.endpoints}
    yield from (f"endpoints: {name} is not configured" for name in sorted(set(pods) - configured))
    for endpoint in settings.endpoints:
        for name, url in (("http", endpoint.url), ("events", endpoint.events),
                          ("replay", endpoint.replay)):  # fmt: skip
            host, port = re.fullmatch(r"\w+://(.+):(\d+)", url or "").groups()  # type: ignore[union-attr] # settings checked the form
            owner = pods.get(host)
            if owner is None:
                yield f"endpoints: there is no pod {host}"
            elif (name, int(port)) not in _container_ports(owner):
                yield f"endpoints: {host} does not serve {name} on {port}"


def _container_ports(workload: Document) -> set[tuple[str, int]]:
    containers = _pod(workload)["containers"]
    return {(p["name"], p["containerPort"]) for c in containers for p in c.get("ports", [])}

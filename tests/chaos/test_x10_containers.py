"""X10, somebody breaks into a container: there is little to be had, by the manifests as written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.kube.documents import NAME, containers, of_kind, pod, workloads
from deploy.kube.needs import policy_faults
from deploy.kube.pods import faults_of
from deploy.kube.render import K8S, raw_documents
from tests.chaos.conftest import Report

Spoil = Callable[[dict[str, Any]], object]
SPOILT: list[tuple[Spoil, str]] = [
    (lambda pod: pod.pop("securityContext"), "may run as root"),
    (lambda pod: pod["securityContext"].pop("seccompProfile"), "seccomp"),
    (lambda pod: pod.pop("automountServiceAccountToken"), "service account token"),
    (lambda pod: pod.update(hostNetwork=True), "namespace of the host"),
    (lambda pod: _of(pod).pop("readOnlyRootFilesystem"), "root can be written"),
    (lambda pod: _of(pod).pop("allowPrivilegeEscalation"), "privileges may escalate"),
    (lambda pod: _of(pod).update(capabilities={}), "keeps capabilities"),
    (lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"), "no limits.memory"),
]


def _of(pod: dict[str, Any]) -> dict[str, Any]:
    security: dict[str, Any] = pod["containers"][0]["securityContext"]
    return security


def tagged(mode: str) -> list[dict[str, Any]]:
    """Read an overlay; kustomize gives our images their tags."""
    documents = raw_documents(K8S / "overlays" / mode)
    for container in (each for workload in workloads(documents) for each in containers(workload)):
        if ":" not in container["image"]:
            container["image"] += ":tag"
    return documents


@pytest.mark.parametrize("mode", ["standalone", "gateway"])
def test_x10_every_pod_is_locked_down(mode: str) -> None:
    """No root, no capabilities, a read-only root, bounds, and nothing open by default."""
    documents = tagged(mode)
    assert [fault for each in workloads(documents) for fault in faults_of(each)] == []
    # As written nobody has a token; tests/deploy has the overlays as they are rendered.
    assert not any(pod(each)["automountServiceAccountToken"] for each in workloads(documents))
    assert [f for f in policy_faults(documents) if "api-server" not in f] == []
    (namespace,) = of_kind(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    budgets = of_kind(documents, "PodDisruptionBudget")
    names = {each["spec"]["selector"]["matchLabels"][NAME] for each in budgets}
    assert {"indexer", "router" if mode == "standalone" else "picker"} <= names
    rules = [rule for role in of_kind(documents, "Role") for rule in role["rules"]]
    assert {verb for rule in rules for verb in rule["verbs"]} <= {"get", "list", "watch"}
    said = "restricted, no token but to discover, least rights, default deny"
    Report("X10", "the pods of k8s/", said).tell()


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_x10_what_is_opened_is_noticed(spoil: Spoil, said: str) -> None:
    """The check fails for every pod in which one of these is taken away."""
    for document in copy.deepcopy(workloads(tagged("gateway"))):
        spoil(pod(document))
        assert any(said in fault for fault in faults_of(document))

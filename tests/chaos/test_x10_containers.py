"""X10, somebody breaks into a container: there is little to be had, by the manifests as written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.manifests import _pod_faults, _policy_faults, _workloads
from tests.chaos.conftest import Report
from tests.deploy.raw import base_documents

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


def tagged() -> list[dict[str, Any]]:
    """Read the base; kustomize gives our images their tags."""
    documents = base_documents()
    for document in _workloads(documents):
        for container in document["spec"]["template"]["spec"]["containers"]:
            if ":" not in container["image"]:
                container["image"] += ":tag"
    return documents


def test_x10_every_pod_is_locked_down() -> None:
    """No root, no capabilities, no token, a read-only root, bounds, and nothing open by default."""
    documents = tagged()
    assert [fault for each in _workloads(documents) for fault in _pod_faults(each)] == []
    assert list(_policy_faults(documents)) == []
    (namespace,) = [each for each in documents if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    budgets = [each for each in documents if each["kind"] == "PodDisruptionBudget"]
    names = {each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] for each in budgets}
    assert {"router", "indexer"} <= names
    assert not [each for each in documents if each["kind"].endswith(("Role", "RoleBinding"))]
    Report("X10", "the pods of k8s/base", "restricted, no token, no role, default deny").tell()


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_x10_what_is_opened_is_noticed(spoil: Spoil, said: str) -> None:
    """The check fails for every pod in which one of these is taken away."""
    for document in copy.deepcopy(_workloads(tagged())):
        spoil(document["spec"]["template"]["spec"])
        assert any(said in fault for fault in _pod_faults(document))

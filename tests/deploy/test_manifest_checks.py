"""The checks of the manifests find what is wrong with them, wherever it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.kube.documents import Document, of_kind, pod
from deploy.kube.needs import policy_faults
from deploy.kube.rbac import right_faults
from deploy.kube.render import K8S, render
from deploy.kube.schemas import schema_faults
from deploy.manifests import faults
from tests.deploy.rendered import needs_kubectl, one, rendered

pytestmark = needs_kubectl


def _pod(documents: list[Document], kind: str, name: str) -> dict[str, Any]:
    return pod(one(documents, kind, name))


def _c(documents: list[Document], kind: str, name: str) -> dict[str, Any]:
    container: dict[str, Any] = _pod(documents, kind, name)["containers"][0]
    return container


def _policy(documents: list[Document], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(documents, "NetworkPolicy", name)["spec"]
    return spec


def _config(documents: list[Document]) -> dict[str, str]:
    (found,) = (d for d in of_kind(documents, "ConfigMap") if "config.yaml" in d["data"])
    data: dict[str, str] = found["data"]
    return data


def _replaced(old: str, new: str) -> Callable[[list[Document]], object]:
    def spoil(documents: list[Document]) -> None:
        data = _config(documents)
        assert old in data["config.yaml"]
        data["config.yaml"] = data["config.yaml"].replace(old, new)

    return spoil


Spoil = Callable[[list[Document]], object]
SPOILT: list[tuple[str, Spoil, str]] = [
    ("standalone", lambda d: _pod(d, "Deployment", "router").pop("securityContext"), "run as root"),
    ("standalone", lambda d: _c(d, "Deployment", "indexer").update(resource={}), "resource"),
    ("standalone", lambda d: _c(d, "StatefulSet", "engine").pop("livenessProbe"),
     "no livenessProbe"),
    ("standalone", lambda d: _c(d, "Deployment", "redis")["resources"]["limits"].pop("memory"),
     "no limits.memory"),
    ("standalone", lambda d: _c(d, "Deployment", "router").update(image="kvatlas:latest"),
     "no fixed tag"),
    ("standalone", lambda d: _c(d, "Deployment", "router")["securityContext"].update(
        privileged=True), "rights of its own"),
    ("standalone", lambda d: _pod(d, "Deployment", "router")["volumes"].append(
        {"name": "host", "hostPath": {"path": "/"}}), "kind that is not allowed"),
    ("standalone", lambda d: _pod(d, "Deployment", "router").pop("topologySpreadConstraints"),
     "may all be on one node"),
    ("standalone", lambda d: d.remove(one(d, "PodDisruptionBudget", "router")),
     "has 0 disruption budgets"),
    ("standalone", lambda d: one(d, "Namespace", "kvatlas")["metadata"]["labels"].update(
        {"pod-security.kubernetes.io/enforce": "baseline"}), "does not enforce restricted"),
    ("standalone", lambda d: one(d, "Service", "router")["spec"]["selector"].update(
        {"app.kubernetes.io/name": "ruoter"}), "Service/router: selects nothing"),
    ("standalone", lambda d: one(d, "Service", "engine")["spec"]["ports"].append(
        {"name": "events", "port": 5557, "targetPort": "events"}), "gives events an address"),
    ("standalone", lambda d: d.remove(one(d, "ServiceAccount", "router")),
     "no ServiceAccount router"),
    ("standalone", lambda d: _c(d, "Deployment", "router")["envFrom"].append(
        {"configMapRef": {"name": "lost"}}), "no ConfigMap lost"),
    ("vllm", lambda d: _pod(d, "Deployment", "router")["volumes"].append(
        {"name": "more", "secret": {"secretName": "unheard-of"}}), "no Secret unheard-of"),
    ("standalone", lambda d: d.append(copy.deepcopy(one(d, "Service", "router"))),
     "is there twice"),
    ("standalone", lambda d: one(d, "StatefulSet", "engine")["spec"].update(replicas=3),
     "there is no pod engine-3.engine"),
    ("standalone", lambda d: one(d, "StatefulSet", "engine")["spec"].update(replicas=5),
     "engine-4.engine is not configured"),
    ("standalone", lambda d: _config(d).update(
        {"config.yaml": _config(d)["config.yaml"] + "ruoter: {}\n"}), "ruoter"),
    ("standalone", _replaced("engine-1.engine:5558", "engine-1.engine:5559"),
     "does not serve replay on 5559"),
    ("standalone", _replaced("drain_s: 60", "drain_s: 90"), "before it has drained"),
    ("standalone", _replaced("router: {host: 0.0.0.0", "router: {host: 127.0.0.1"), "loopback"),
    ("standalone", _replaced("admin_port: 9091", "admin_port: 9092"), "opens {'admin': 9091}"),
    ("standalone", _replaced("tokenizer: demo", "tokenizer: /models/m"), "nothing is mounted for"),
    ("vllm", _replaced("name=engine", "name=engines"), "finds nothing"),
    ("vllm", _replaced("replay_port: 5558", "replay_port: 5559"), "does not serve replay on 5559"),
    ("gateway", _replaced("name: engines", "name: pool"), "there is no InferencePool pool"),
    ("gateway", lambda d: one(d, "InferencePool", "engines")["spec"]["endpointPickerRef"].update(
        port={"number": 9003 + 1}), "there is no picker:9004"),
    ("gateway", lambda d: one(d, "InferencePool", "engines")["spec"].update(
        targetPorts=[{"number": 8001}]), "serve nothing on 8001"),
    ("gateway", lambda d: one(d, "HTTPRoute", "engines")["spec"]["rules"][0]["backendRefs"][
        0].update(name="lost"), "no InferencePool lost"),
    ("gateway", lambda d: _c(d, "Deployment", "picker")["readinessProbe"]["grpc"].update(
        port=9004), "readinessProbe asks port 9004"),
    ("gateway-vllm", lambda d: one(d, "InferenceObjective", "chat")["spec"]["poolRef"].update(
        name="lost"), "InferenceObjective/chat: there is no InferencePool lost"),
    ("gateway-vllm", lambda d: one(d, "InferenceModelRewrite", "assistant")["spec"]["rules"][0][
        "targets"][0].update(modelRewrite="lost"), "lost is not one of models"),
    ("gateway-vllm", lambda d: one(d, "ServiceMonitor", "kvatlas")["spec"]["endpoints"][0].update(
        port="metrics"), "have no port metrics"),
    ("gateway-vllm", lambda d: one(d, "HorizontalPodAutoscaler", "requests")["spec"]["metrics"][0][
        "pods"]["metric"].update(name="kvatlas_router_lost"), "METRICS.md has no"),
    ("gateway-vllm", lambda d: one(d, "HorizontalPodAutoscaler", "requests")["spec"]["metrics"][0][
        "pods"]["metric"].update(name="kvatlas_router_held_bytes"), "adapter.yaml has no"),
    ("gateway-vllm", lambda d: one(d, "HorizontalPodAutoscaler", "requests")["spec"][
        "scaleTargetRef"].update(name="engine"), "scales nothing that takes requests"),
    ("gateway-vllm", lambda d: one(d, "Deployment", "picker")["spec"].update(replicas=2),
     "sets the number of pickers"),
    ("gateway-vllm", lambda d: one(d, "StatefulSet", "sentinel")["spec"].update(replicas=2),
     "redis: there is no sentinel-2.sentinel:26379"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "said"), SPOILT, ids=[each[2] for each in SPOILT])
def test_checks_find_what_is_wrong(name: str, spoil: Spoil, said: str) -> None:
    """A manifest that is spoilt in one place is told apart by name."""
    documents = copy.deepcopy(rendered(name))
    spoil(documents)
    assert any(said in fault for fault in faults(documents))


OPENED: list[tuple[str, Spoil, str]] = [
    ("standalone", lambda d: d.remove(one(d, "NetworkPolicy", "default-deny")),
     "redis to internet:443 is open"),
    ("standalone", lambda d: _policy(d, "engine")["ingress"][1]["from"].append({"podSelector": {}}),
     "redis to engine:events is open where it ends"),
    ("standalone", lambda d: _policy(d, "to-engines")["egress"][0].pop("ports"),
     "router to engine:other is open where it begins"),
    ("standalone", lambda d: _policy(d, "redis")["ingress"][0].pop("from"),
     "anybody to redis:redis is open"),
    ("standalone", lambda d: _policy(d, "to-events")["podSelector"].pop("matchExpressions"),
     "redis to engine:events is open where it begins"),
    ("standalone", lambda d: d.remove(one(d, "NetworkPolicy", "to-events")),
     "indexer to engine:events is closed"),
    ("standalone", lambda d: _policy(d, "names")["egress"][0]["ports"].pop(0),
     "router to dns:53/UDP is closed"),
    ("standalone", lambda d: _policy(d, "admin").update(ingress=[]),
     "monitoring to router:admin is closed"),
    ("gateway", lambda d: d.remove(one(d, "NetworkPolicy", "gateway-to-engines")),
     "gateway to engine:http is closed"),
    ("gateway", lambda d: _policy(d, "picker")["ingress"][0].pop("from"),
     "anybody to picker:grpc is open"),
    ("gateway", lambda d: _policy(d, "picker")["ingress"][0].pop("ports"),
     "gateway to picker:admin is open"),
    ("gateway", lambda d: _policy(d, "to-api-server")["egress"][0]["to"].append(
        {"ipBlock": {"cidr": "0.0.0.0/0"}}), "picker to internet:443 is open"),
    ("vllm", lambda d: _policy(d, "hub")["egress"][1]["to"][0]["ipBlock"].pop("except"),
     "engine to metadata:443 is open"),
    ("vllm", lambda d: _policy(d, "hub").update(podSelector={"matchLabels": {"x": "y"}}),
     "NetworkPolicy/hub: selects nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "said"), OPENED, ids=[each[2] for each in OPENED])
def test_policies_are_held_to_the_table_both_ways(name: str, spoil: Spoil, said: str) -> None:
    """One connection too many, or too few, is named with its two ends."""
    documents = copy.deepcopy(rendered(name))
    spoil(documents)
    assert any(said in fault for fault in policy_faults(documents))


def _rule(documents: list[Document], role: str) -> dict[str, Any]:
    rule: dict[str, Any] = one(documents, "Role", role)["rules"][0]
    return rule


RIGHTS: list[tuple[str, Spoil, str]] = [
    ("vllm", lambda d: _rule(d, "discover-pods")["verbs"].append("delete"), "may delete pods"),
    ("vllm", lambda d: _rule(d, "discover-pods")["resources"].append("secrets"), "may get secrets"),
    ("vllm", lambda d: _rule(d, "discover-pods")["verbs"].remove("watch"), "may not watch pods"),
    ("vllm", lambda d: _rule(d, "discover-pods").update(verbs=["*"]), "has wildcards"),
    ("gateway", lambda d: one(d, "RoleBinding", "follow-rules")["subjects"].append(
        {"kind": "ServiceAccount", "name": "indexer", "namespace": "kvatlas"}),
     "Deployment/indexer: may get inferenceobjectives"),
    ("gateway", lambda d: d.remove(one(d, "RoleBinding", "discover-pool")), "nobody has it"),
    ("gateway", lambda d: d.remove(one(d, "Role", "discover-pool")), "there is no Role"),
    ("gateway", lambda d: one(d, "RoleBinding", "discover-pool")["subjects"].append(
        {"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}),
     "is no service account"),
    ("gateway", lambda d: one(d, "RoleBinding", "discover-pool")["subjects"].append(
        {"kind": "ServiceAccount", "name": "default", "namespace": "kvatlas"}),
     "Deployment/redis: may get pods"),
    ("gateway", lambda d: d.append({"apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole", "metadata": {"name": "all"}, "rules": []}), "for the whole cluster"),
    ("standalone", lambda d: _pod(d, "Deployment", "router").update(
        automountServiceAccountToken=True), "a token that is good for nothing"),
    ("vllm", lambda d: _pod(d, "Deployment", "router").update(
        automountServiceAccountToken=False), "a token that is good for nothing, or none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "said"), RIGHTS, ids=[each[2] for each in RIGHTS])
def test_rights_are_those_that_are_needed(name: str, spoil: Spoil, said: str) -> None:
    """One verb too many, or too few, is named with who has it."""
    documents = copy.deepcopy(rendered(name))
    kinds = {"vllm": {"pods"}, "gateway": {"inference-pool"}}.get(name, set())
    spoil(documents)
    assert any(said in fault for fault in right_faults(documents, kinds))


UNKNOWN: list[tuple[str, str, str, Spoil]] = [
    (name, kind, title, spoil)
    for name, kind, title, spoil in [
        ("gateway", "InferencePool", "engines", lambda d: d[0]["spec"].update(targetPort=8000)),
        ("gateway", "InferencePool", "engines", lambda d: d[0]["spec"]["endpointPickerRef"].update(
            failureMode="FailOpn")),
        ("gateway", "InferencePool", "engines", lambda d: d[0]["spec"].update(
            targetPorts=[{"number": 1}, {"number": 1}])),
        ("gateway", "HTTPRoute", "engines", lambda d: d[0]["spec"]["rules"][0]["timeouts"].update(
            request="0 s")),
        ("gateway-vllm", "InferenceObjective", "chat", lambda d: d[0]["spec"].update(
            priority="high")),
        ("gateway-vllm", "InferenceModelRewrite", "assistant", lambda d: d[0]["spec"]["rules"][0][
            "targets"][0].update(model="x")),
        ("gateway-vllm", "ServiceMonitor", "kvatlas", lambda d: d[0]["spec"]["endpoints"][0].update(
            targetport="admin")),
        ("gateway-vllm", "PrometheusRule", "kvatlas", lambda d: d[0]["spec"]["groups"][0]["rules"][
            0].update(expression="1")),
        ("gateway", "Gateway", "inference", lambda d: d[0]["spec"].update(gatewayClass="istio")),
        ("gateway", "InferencePool", "engines", lambda d: d[0].update(
            apiVersion="inference.networking.k8s.io/v2")),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "title", "spoil"), UNKNOWN)
def test_custom_resources_have_no_other_fields(
    name: str, kind: str, title: str, spoil: Spoil
) -> None:
    """A field, value or version that is not known is refused, as a cluster would, or drop it."""
    documents = render(K8S / "gateway") if kind == "Gateway" else copy.deepcopy(rendered(name))
    document = one(documents, kind, title)
    spoil([document])
    assert any(fault.startswith(f"{kind}/{title}: ") for fault in schema_faults([document]))

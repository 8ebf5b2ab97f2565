"""Objects as the API server of Kubernetes returns them, with all that nobody asked for."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
CREATED = "2026-08-03T09:14:22Z"


def metadata(name: str, namespace: str, created: str = CREATED, **more: Any) -> Json:
    """Make what every object has; the server adds uid and version."""
    return {
        "name": name,
        "namespace": namespace,
        "creationTimestamp": created,
        "generation": 1,
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": '{"apiVersion":"v1"}'},
        "managedFields": [
            {
                "manager": manager,
                "operation": "Update",
                "apiVersion": "v1",
                "time": created,
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:pod-template-hash": {}}},
                    "f:spec": {
                        'k:{"name":"vllm"}': {
                            f"f:{field}": {".": {}, "f:limits": {}, "f:requests": {}}
                            for field in (
                                *("args", "command", "env", "image", "imagePullPolicy", "name"),
                                *("livenessProbe", "ports", "readinessProbe", "resources"),
                            )
                        }
                    },
                },
            }
            for manager in ("kube-controller-manager", "kubelet")
        ],
        **more,
    }


def pod(
    name: str,
    ip: str | None,
    *,
    namespace: str = "demo",
    ready: bool = True,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    created: str = CREATED,
) -> Json:
    """Make a pod of a vLLM Deployment: about 9 KB of JSON."""
    made = metadata(name, namespace, created)
    made["labels"] = {"app": "vllm", "pod-template-hash": "6d4cf56db6", **(labels or {})}
    made["annotations"] |= annotations or {}
    made["ownerReferences"] = [
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": "vllm-6d4cf56db6",
            "uid": "52dd9f4e-6b73-4d0e-a2d9-5d7fe1d3a4b9",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": made,
        "spec": _pod_spec(),
        "status": _pod_status(ip, ready=ready, at=created),
    }


def _pod_spec() -> Json:
    probe = {"httpGet": {"path": "/health", "port": "http", "scheme": "HTTP"}, "periodSeconds": 5}
    environment = [
        {"name": f"VLLM_SETTING_{number}", "value": "x" * 60 + str(number)} for number in range(30)
    ]
    return {
        "volumes": [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
            {
                "name": "kube-api-access-x7v2q",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
                    ],
                    "defaultMode": 420,
                },
            },
        ],
        "containers": [
            {
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.32.0",
                "command": ["vllm", "serve"],
                "args": ["Qwen/Qwen3-8B", "--enable-prefix-caching", '--kv-events-config={"a":1}'],
                "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
                "env": environment,
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "readinessProbe": probe,
                "livenessProbe": probe,
                "terminationMessagePath": "/dev/termination-log",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 60,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "nodeName": "gpu-node-1",
        "schedulerName": "default-scheduler",
        "tolerations": [
            {
                "key": "node.kubernetes.io/not-ready",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }
        ],
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
    }


def _pod_status(ip: str | None, *, ready: bool, at: str) -> Json:
    conditions = [
        {
            "type": kind,
            "observedGeneration": 1,
            "status": "True" if ready or kind in ("Initialized", "PodScheduled") else "False",
            "lastProbeTime": None,
            "lastTransitionTime": at,
        }
        for kind in (
            *("PodReadyToStartContainers", "Initialized", "Ready"),
            *("ContainersReady", "PodScheduled"),
        )
    ]
    status: Json = {
        "observedGeneration": 1,
        "phase": "Running" if ip else "Pending",
        "conditions": conditions,
        "hostIP": "192.168.7.11",
        "hostIPs": [{"ip": "192.168.7.11"}],
        "startTime": at,
        "containerStatuses": [
            {
                "name": "vllm",
                "state": {"running": {"startedAt": at}},
                "lastState": {},
                "ready": ready,
                "restartCount": 0,
                "image": "docker.io/vllm/vllm-openai:v0.32.0",
                "imageID": "docker.io/vllm/vllm-openai@sha256:" + "a" * 64,
                "containerID": "containerd://" + "b" * 64,
                "started": True,
            }
        ],
        "qosClass": "BestEffort",
    }
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return status


def pool(
    name: str,
    *,
    namespace: str = "demo",
    labels: dict[str, str] | None = None,
    ports: tuple[int, ...] = (8000,),
) -> Json:
    """Make an InferencePool of v1."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": metadata(name, namespace),
        "spec": {
            "endpointPickerRef": {
                "failureMode": "FailClose",
                "group": "",
                "kind": "Service",
                "name": f"{name}-epp",
                "port": {"number": 9002},
            },
            "selector": {"matchLabels": labels or {"app": "vllm"}},
            "targetPorts": [{"number": port} for port in ports],
        },
        "status": {
            "parents": [
                {
                    "conditions": [
                        _condition("Accepted", "SupportedByParent"),
                        _condition("ResolvedRefs", "ResolvedRefs"),
                    ],
                    "parentRef": {
                        "group": "gateway.networking.k8s.io",
                        "kind": "Gateway",
                        "name": "inference-gateway",
                    },
                }
            ]
        },
    }


def legacy_pool(
    name: str, *, namespace: str = "demo", labels: dict[str, str] | None = None, port: int = 8000
) -> Json:
    """Make an InferencePool as v1alpha2 had it."""
    return {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferencePool",
        "metadata": metadata(name, namespace),
        "spec": {
            "extensionRef": {"group": "", "kind": "Service", "name": f"{name}-epp"},
            "selector": labels or {"app": "vllm"},
            "targetPortNumber": port,
        },
        "status": {"parent": [{"conditions": [_condition("Accepted", "Accepted")]}]},
    }


def objective(
    name: str,
    pool: str,
    priority: int | None,
    *,
    namespace: str = "demo",
    group: str = "llm-d.ai",
    created: str = CREATED,
) -> Json:
    """Make an InferenceObjective."""
    spec: Json = {"poolRef": _pool_ref(pool)}
    if priority is not None:
        spec["priority"] = priority
    return {
        "apiVersion": f"{group}/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": metadata(name, namespace, created),
        "spec": spec,
        "status": {"conditions": [_condition("Ready", "Pending", "Unknown")]},
    }


def rewrite(
    name: str,
    pool: str,
    rules: list[Json],
    *,
    namespace: str = "demo",
    group: str = "llm-d.ai",
    created: str = CREATED,
) -> Json:
    """Make an InferenceModelRewrite; `rule` makes its rules."""
    return {
        "apiVersion": f"{group}/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": metadata(name, namespace, created),
        "spec": {"poolRef": _pool_ref(pool), "rules": rules},
        "status": {"conditions": [_condition("Accepted", "Pending", "Unknown")]},
    }


def rule(models: tuple[str, ...], **targets: int | None) -> Json:
    """Make a rule: for these models (none: all), names with their weights."""
    made: Json = {
        "targets": [
            {"modelRewrite": name} | ({} if weight is None else {"weight": weight})
            for name, weight in targets.items()
        ]
    }
    if models:
        made["matches"] = [{"model": {"type": "Exact", "value": model}} for model in models]
    return made


def _pool_ref(pool: str) -> Json:
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool}


def _condition(kind: str, reason: str, status: str = "True") -> Json:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": CREATED,
        "observedGeneration": 1,
    }

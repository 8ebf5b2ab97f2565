"""The Kubernetes manifests hold what KUBERNETES.md promises, and the checks can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy import prometheus_rule
from deploy.kube.configs import configurations
from deploy.kube.documents import name_of, of_kind, pod, ports, workloads
from deploy.kube.render import (
    COMBINATIONS,
    FOLDERS,
    K8S,
    ROOT,
    render,
    render_combination,
)
from deploy.manifests import documented_secrets, faults
from kvatlas.common.discovery_settings import EVENTS_PORT, REPLAY_PORT
from kvatlas.common.settings import Settings
from tests.deploy.rendered import needs_kubectl, one, rendered


@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(K8S)))
def test_overlays_have_no_faults(folder: Path) -> None:
    """Every kustomization is valid by the schemas and by our own rules."""
    assert faults(render(folder)) == []


@needs_kubectl
@pytest.mark.parametrize(("mode", "redis"), COMBINATIONS)
def test_components_fit_together(mode: str, redis: str) -> None:
    """Proxy and pickers go with every Redis, with keys and with monitoring."""
    assert faults(render_combination(mode, redis)) == []


def test_every_component_is_checked() -> None:
    """What is in no overlay and in no combination would be seen by no check."""
    used: set[Path] = set()
    pending = [K8S / "base", *FOLDERS]
    pending += [K8S / "components" / redis for _, redis in COMBINATIONS]
    while pending:
        folder = pending.pop().resolve()
        content = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
        used.add(folder)
        named_there = [*content.get("resources", []), *content.get("components", [])]
        pending += [folder / each for each in named_there if (folder / each).is_dir()]
    assert {path.parent for path in K8S.rglob("kustomization.yaml")} == used


@needs_kubectl
def test_standalone_has_what_compose_has() -> None:
    """It runs Redis, two indexers, two routers and four engines, and a doctor that waits."""
    documents = rendered("standalone")
    replicas = {
        each["metadata"]["name"]: each["spec"]["replicas"]
        for each in of_kind(documents, "Deployment", "StatefulSet")
    }
    assert replicas == {"redis": 1, "indexer": 2, "router": 2, "engine": 4}
    assert one(documents, "CronJob", "doctor")["spec"]["suspend"] is True


@needs_kubectl
def test_picker_has_the_ports_that_it_has_by_default() -> None:
    """Who swaps the image in an existing Deployment finds 9002, 9003 and 9090."""
    documents, settings = rendered("gateway"), Settings.model_validate({})
    defaults = {
        "grpc": settings.picker.port,
        "health": settings.picker.health_port,
        "admin": settings.router.admin_port,
    }
    assert ports(one(documents, "Deployment", "picker")) == defaults
    assert defaults == {"grpc": 9002, "health": 9003, "admin": 9090}
    service = one(documents, "Service", "picker")["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in service} == defaults


@needs_kubectl
@pytest.mark.parametrize("name", ["vllm", "gateway-vllm"])
def test_vllm_has_the_flags_that_the_page_names(name: str) -> None:
    """Events and replays are bound where discovery looks for them; the page says the same flags."""
    args = pod(one(rendered(name), "Deployment", "engine"))["containers"][0]["args"]
    page = (ROOT / "docs/KUBERNETES.md").read_text("utf-8")
    for flag in re.findall(r"^\| `(--[^`]+)` \|", page, re.MULTILINE):
        assert flag in args
    (events,) = [each for each in args if each.startswith("--kv-events-config=")]
    told = yaml.safe_load(events.split("=", 1)[1])
    assert told["endpoint"] == f"tcp://*:{EVENTS_PORT}"
    assert told["replay_endpoint"] == f"tcp://*:{REPLAY_PORT}"
    assert told["publisher"] == "zmq"
    assert told["enable_kv_cache_events"] is True


@needs_kubectl
@pytest.mark.parametrize("name", ["vllm", "gateway-vllm"])
def test_engines_end_within_their_grace(name: str) -> None:
    """The hook's sleep and vLLM's own time to drain fit in."""
    specification = pod(one(rendered(name), "Deployment", "engine"))
    (container,) = specification["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    (drain,) = [a for a in container["args"] if a.startswith("--shutdown-timeout=")]
    assert specification["terminationGracePeriodSeconds"] > sleep + int(drain.split("=")[1])


@needs_kubectl
@pytest.mark.parametrize("name", ["vllm", "gateway-vllm"])
def test_only_init_containers_and_engines_see_the_token(name: str) -> None:
    """The hub's token reaches who fetches, and no variable of a service."""
    for workload in workloads(rendered(name)):
        for container in pod(workload)["containers"]:
            seen = [each["name"] for each in container.get("env", [])]
            assert ("HF_TOKEN" in seen) == (name_of(workload) == "engine")


@needs_kubectl
def test_who_tokenizes_fetches_alike() -> None:
    """The doctor's pod stands deeper than others, so its patch is another file, and the same."""
    documents = rendered("vllm")
    router, doctor = (
        pod(one(documents, kind, name))
        for kind, name in (("Deployment", "router"), ("CronJob", "doctor"))
    )
    assert router["initContainers"] == doctor["initContainers"]


@needs_kubectl
def test_redis_passwords_are_for_their_users_alone() -> None:
    """The indexer has no login of routers, they have none of the indexer's, Redis has hashes."""
    documents = rendered("vllm")
    keys = {
        name_of(workload): {item["key"] for item in volume["secret"]["items"]}
        for workload in workloads(documents)
        for volume in pod(workload)["volumes"]
        if volume.get("secret", {}).get("secretName") == "redis-logins"
    }
    assert keys == {
        "indexer": {"indexer"},
        "router": {"router-read", "router-write"},
        "doctor": {"router-read"},
    }
    users = {name_of(w): settings.redis.user for w, settings in configurations(documents)}
    assert users == {"indexer": "indexer", "router": "router-read", "doctor": "router-read"}


def test_prometheus_rule_is_what_prometheus_reads() -> None:
    """`python -m deploy.prometheus_rule` writes the object; nobody edits it."""
    assert prometheus_rule.OBJECT.read_text("utf-8") == prometheus_rule.text()
    spec = yaml.safe_load(prometheus_rule.text())["spec"]
    assert spec == yaml.safe_load(prometheus_rule.RULES.read_text("utf-8"))


def test_secrets_are_documented() -> None:
    """Whoever follows the page has made every Secret that an overlay asks for."""
    wanted = {"redis-users", "redis-logins", "api-keys", "huggingface", "redis-ca"}
    assert documented_secrets() == wanted

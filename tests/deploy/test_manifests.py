"""The Kubernetes manifests hold what DEPLOY.md promises, and the checks can tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import yaml

from deploy.manifests import FOLDERS, Document, faults, kubectl, render
from kvatlas.common import limits
from kvatlas.common.settings import Settings

pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl is not on the PATH")


@cache
def _rendered(number: int) -> list[Document]:
    return render(FOLDERS[number])


def _one(documents: list[Document], kind: str, name: str) -> Document:
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def _container(documents: list[Document], kind: str, name: str) -> dict[str, Any]:
    pod = _one(documents, kind, name)["spec"]["template"]["spec"]
    container: dict[str, Any] = pod["containers"][0]
    return container


@pytest.mark.parametrize("number", range(len(FOLDERS)), ids=lambda n: FOLDERS[n].name)
def test_manifests_have_no_faults(number: int) -> None:
    """Every kustomization is valid by the schemas and by our own rules."""
    assert faults(_rendered(number)) == []


def test_base_has_what_compose_has() -> None:
    """The base runs Redis, two indexers, two routers and four engines."""
    replicas = {
        d["metadata"]["name"]: d["spec"]["replicas"]
        for d in _rendered(0)
        if d["kind"] in ("Deployment", "StatefulSet")
    }
    assert replicas == {"redis": 1, "indexer": 2, "router": 2, "engine": 4}


def test_only_the_init_container_sees_the_token() -> None:
    """The hub token reaches the init container, and no variable of the router."""
    pod = _one(_rendered(1), "Deployment", "router")["spec"]["template"]["spec"]
    assert [e["name"] for e in pod["initContainers"][0]["env"]] == ["HF_TOKEN"]
    assert "env" not in pod["containers"][0]


def test_router_outlives_its_drain() -> None:
    """Kubernetes waits longer than the router takes to end its streams."""
    pod = _one(_rendered(0), "Deployment", "router")["spec"]["template"]["spec"]
    (config,) = [d for d in _rendered(0) if d["kind"] == "ConfigMap"]
    options = Settings.model_validate(yaml.safe_load(config["data"]["config.yaml"])).router
    assert options.pre_stop_s >= limits.PRE_STOP_S, "a Service needs so long to forget a pod"
    assert "lifecycle" not in pod["containers"][0], "the router itself waits"
    assert (
        pod["terminationGracePeriodSeconds"]
        > options.pre_stop_s + options.drain_s + limits.LINGER_S
    )


def _root(documents: list[Document]) -> None:
    del _one(documents, "Deployment", "router")["spec"]["template"]["spec"]["securityContext"]


def _misspelt(documents: list[Document]) -> None:
    _container(documents, "Deployment", "indexer")["resource"] = {}


def _no_probe(documents: list[Document]) -> None:
    del _container(documents, "StatefulSet", "engine")["livenessProbe"]


def _no_limit(documents: list[Document]) -> None:
    del _container(documents, "Deployment", "redis")["resources"]["limits"]["memory"]


def _lost_selector(documents: list[Document]) -> None:
    _one(documents, "Service", "router")["spec"]["selector"] = {"app.kubernetes.io/name": "ruoter"}


def _open_events(documents: list[Document]) -> None:
    policy = _one(documents, "NetworkPolicy", "engine")
    policy["spec"]["ingress"][1]["from"][0]["podSelector"] = {}


def _events_service(documents: list[Document]) -> None:
    port = {"name": "events", "port": 5557, "targetPort": "events"}
    _one(documents, "Service", "engine")["spec"]["ports"].append(port)


def _no_default_deny(documents: list[Document]) -> None:
    documents.remove(_one(documents, "NetworkPolicy", "default-deny"))


def _fewer_engines(documents: list[Document]) -> None:
    _one(documents, "StatefulSet", "engine")["spec"]["replicas"] = 3


def _bad_setting(documents: list[Document]) -> None:
    config = next(d for d in documents if d["kind"] == "ConfigMap")
    config["data"]["config.yaml"] += "ruoter: {}\n"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_root, "may run as root"),
        (_misspelt, "resource"),
        (_no_probe, "no livenessProbe"),
        (_no_limit, "no limits.memory"),
        (_lost_selector, "Service/router: selects nothing"),
        (_open_events, "engine:events is open to"),
        (_events_service, "gives events an address"),
        (_no_default_deny, "none denies by default"),
        (_fewer_engines, "there is no pod engine-3.engine"),
        (_bad_setting, "ruoter"),
    ],
)
def test_checks_find_what_is_wrong(spoil: Callable[[list[Document]], None], said: str) -> None:
    """A manifest that is spoilt in one place is told apart by name."""
    documents = copy.deepcopy(_rendered(0))
    spoil(documents)
    assert any(said in fault for fault in faults(documents))

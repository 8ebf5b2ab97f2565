"""What must hold for every Kubernetes manifest of the repository, beyond being valid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from deploy.kube.addresses import address_faults
from deploy.kube.configs import config_faults, configurations
from deploy.kube.documents import Document, of_kind, title
from deploy.kube.needs import policy_faults
from deploy.kube.pods import budget_faults, pod_faults
from deploy.kube.rbac import right_faults
from deploy.kube.references import reference_faults
from deploy.kube.render import ROOT
from deploy.kube.schemas import schema_faults

PAGE: Final = ROOT / "docs/KUBERNETES.md"
_ADAPTER: Final = ROOT / "deploy/prometheus/adapter.yaml"
_METRICS: Final = ROOT / "docs/METRICS.md"


def faults(documents: list[Document]) -> list[str]:
    """List everything that is wrong with a rendered kustomization."""
    read = list(configurations(documents))
    kinds: set[str] = {each.kind for _, settings in read for each in settings.discovery}
    found = [
        *schema_faults(documents),
        *pod_faults(documents),
        *budget_faults(documents),
        *reference_faults(documents, documented_secrets()),
        *policy_faults(documents),
        *right_faults(documents, kinds),
        *config_faults(documents),
        *(fault for _, settings in read for fault in address_faults(documents, settings)),
        *_scaler_faults(documents),
    ]
    # What is wrong with a file that all pods read is said once.
    return list(dict.fromkeys(found))


def documented_secrets() -> set[str]:
    """List the Secrets that an operator makes: the page says how."""
    made = re.findall(r"create secret (?:generic|tls) ([a-z-]+)", PAGE.read_text("utf-8"))
    script = (ROOT / "deploy/redis/secrets.sh").read_text("utf-8")
    return {*made, *re.findall(r"^  name: ([a-z-]+)$", script, re.MULTILINE)}


def _scaler_faults(documents: list[Document]) -> Iterator[str]:
    """Find metrics of autoscalers that nobody shows, or that the adapter is not told of."""
    router = _METRICS.read_text("utf-8").split("## Router")[1]
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] != "Pods":
                continue
            name = metric["pods"]["metric"]["name"]
            if f"| `{name.removeprefix('kvatlas_router_')}` |" not in router:
                yield f"{title(scaler)}: docs/METRICS.md has no {name}"
            if name not in _ADAPTER.read_text("utf-8"):
                yield f"{title(scaler)}: deploy/prometheus/adapter.yaml has no {name}"

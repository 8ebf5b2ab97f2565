"""Manifests as documents: what is where in them, and what a selector selects. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Document = dict[str, Any]
"""One manifest as kubectl renders it."""

NAME: Final = "app.kubernetes.io/name"
NAMESPACE: Final = "kvatlas"
REPLICATED: Final = ("Deployment", "StatefulSet")
WORKLOADS: Final = (*REPLICATED, "Job", "CronJob")
TAKERS: Final = ("router", "picker")
"""Who takes requests."""


def title(document: Document) -> str:
    """Name a document for people."""
    return f"{document['kind']}/{document['metadata']['name']}"


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """List those of some kinds."""
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[Document], kind: str, name: str) -> Document | None:
    """Find one; None where there is none."""
    found = (d for d in of_kind(documents, kind) if d["metadata"]["name"] == name)
    return next(found, None)


def workloads(documents: list[Document]) -> list[Document]:
    """List all that make pods."""
    return of_kind(documents, *WORKLOADS)


def _template(workload: Document) -> Document:
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Document = spec["template"]
    return template


def pod(workload: Document) -> Document:
    """Give the specification of a workload's pods."""
    specification: Document = _template(workload)["spec"]
    return specification


def labels(workload: Document) -> dict[str, str]:
    """Give the labels of a workload's pods."""
    found: dict[str, str] = _template(workload)["metadata"]["labels"]
    return found


def name_of(workload: Document) -> str:
    """Give what a workload's pods are called by policies."""
    return labels(workload)[NAME]


def containers(workload: Document) -> list[Document]:
    """List all containers, those that come first among them."""
    specification = pod(workload)
    return [*specification.get("initContainers", []), *specification["containers"]]


def ports(workload: Document) -> dict[str, int]:
    """Give a workload's ports by name."""
    given = (port for each in pod(workload)["containers"] for port in each.get("ports", []))
    return {port["name"]: port["containerPort"] for port in given}


def matches(selector: Document, of: dict[str, str]) -> bool:
    """Tell whether a label selector selects.

    Raises:
        ValueError: it has an operator that is none.
    """
    wanted = selector.get("matchLabels", {})
    return all(of.get(key) == value for key, value in wanted.items()) and all(
        _holds(rule, of) for rule in selector.get("matchExpressions", [])
    )


def _holds(rule: Document, of: dict[str, str]) -> bool:
    key, operator, values = rule["key"], rule["operator"], rule.get("values", [])
    if operator in ("In", "NotIn"):
        return bool((of.get(key) in values) == (operator == "In"))
    if operator in ("Exists", "DoesNotExist"):
        return bool((key in of) == (operator == "Exists"))
    raise ValueError(f"no operator of a selector: {operator}")


def selected(documents: list[Document], selector: Document) -> list[Document]:
    """List the workloads whose pods a selector selects."""
    return [each for each in workloads(documents) if matches(selector, labels(each))]


def strings(value: Any) -> Iterator[str]:
    """Give all texts in a value, keys of mappings aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)

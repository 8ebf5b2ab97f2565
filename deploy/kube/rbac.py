"""Rights: what each service account may ask of the API server, against what it must. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from deploy.kube.documents import TAKERS, Document, name_of, named, of_kind, pod, title, workloads


class Right(NamedTuple):
    """One verb on one kind of objects, within our namespace."""

    group: str
    resource: str
    verb: str


_VERBS: Final = ("get", "list", "watch")
_POOLS: Final = ("inference.networking.k8s.io", "inference.networking.x-k8s.io")
_RULES: Final = ("llm-d.ai", "inference.networking.x-k8s.io")


def _read(groups: tuple[str, ...], *resources: str) -> set[Right]:
    return {Right(g, r, v) for g in groups for r in resources for v in _VERBS}


def needed(service: str, kinds: set[str]) -> set[Right]:
    """List the rights that a service needs.

    Args:
        service: router, picker, indexer or doctor.
        kinds: of `discovery` in its configuration.
    """
    rights: set[Right] = set()
    if kinds & {"pods", "inference-pool"}:
        rights |= _read(("",), "pods")
    if "inference-pool" in kinds:
        rights |= _read(_POOLS, "inferencepools")
        if service in TAKERS:
            rights |= _read(_RULES, "inferenceobjectives", "inferencemodelrewrites")
    return rights


def granted(documents: list[Document]) -> dict[str, set[Right]]:
    """List what the bindings give each service account."""
    rights: dict[str, set[Right]] = {}
    for binding in of_kind(documents, "RoleBinding"):
        role = named(documents, binding["roleRef"]["kind"], binding["roleRef"]["name"]) or {}
        for subject in binding["subjects"]:
            given = rights.setdefault(subject["name"], set())
            for rule in role.get("rules", []):
                given |= {
                    Right(group, resource, verb)
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                }
    return rights


def right_faults(documents: list[Document], kinds: set[str]) -> Iterator[str]:
    """List rights that are missing, or more than what is needed."""
    for document in of_kind(documents, "ClusterRole", "ClusterRoleBinding"):
        yield f"{title(document)}: is good for the whole cluster"
    yield from _binding_faults(documents)
    given = granted(documents)
    for workload in workloads(documents):
        service, name = name_of(workload), title(workload)
        account = pod(workload).get("serviceAccountName", "default")
        has, wants = (
            given.pop(account, set()),
            needed(service, kinds) if _is_ours(service) else set(),
        )
        yield from (f"{name}: may {right.verb} {right.resource}" for right in sorted(has - wants))
        yield from (
            f"{name}: may not {right.verb} {right.resource}" for right in sorted(wants - has)
        )
        if bool(pod(workload)["automountServiceAccountToken"]) != bool(wants):
            yield f"{name}: has a token that is good for nothing, or none"
    yield from (f"ServiceAccount/{account}: has rights and no pods" for account in sorted(given))


def _is_ours(service: str) -> bool:
    return service in (*TAKERS, "indexer", "doctor")


def _binding_faults(documents: list[Document]) -> Iterator[str]:
    bound = set()
    for binding in of_kind(documents, "RoleBinding"):
        role = binding["roleRef"]
        bound.add(role["name"])
        if role["kind"] != "Role" or named(documents, "Role", role["name"]) is None:
            yield f"{title(binding)}: there is no Role {role['name']}"
        for subject in binding["subjects"]:
            if subject["kind"] != "ServiceAccount":
                yield f"{title(binding)}: {subject['kind']} {subject['name']} is no service account"
    for role in of_kind(documents, "Role"):
        if role["metadata"]["name"] not in bound:
            yield f"{title(role)}: nobody has it"
        if "*" in str(role["rules"]):
            yield f"{title(role)}: has wildcards"

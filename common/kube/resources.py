"""The types of objects that are watched, and how the API server names them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LLM_D: Final = "llm-d.ai"
LEGACY: Final = "inference.networking.x-k8s.io"


@dataclass(frozen=True, slots=True)
class Resource:
    """A type of objects that live in namespaces; of the core group where it is empty."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str) -> str:
        """Give where a namespace's objects are listed."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}"

    def rule(self) -> str:
        """Write the rule that a Role must have for us, as YAML in one line."""
        return (
            f'{{apiGroups: ["{self.group}"], resources: ["{self.plural}"],'
            ' verbs: ["get", "list", "watch"]}'
        )

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS: Final = Resource("", "v1", "pods")
POOLS: Final = {
    "inference.networking.k8s.io": Resource("inference.networking.k8s.io", "v1", "inferencepools"),
    LEGACY: Resource(LEGACY, "v1alpha2", "inferencepools"),
}
"""By group."""
OBJECTIVES: Final = tuple(
    Resource(group, "v1alpha2", "inferenceobjectives") for group in (LLM_D, LEGACY)
)
"""The group that wins first."""
REWRITES: Final = tuple(
    Resource(group, "v1alpha2", "inferencemodelrewrites") for group in (LLM_D, LEGACY)
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects are watched.

    Attributes:
        namespace: of them; None for our own.
        labels: selector of labels, as the API takes it.
        name: of the only one.
        watch: what the watch is called in metrics and logs.
    """

    resource: Resource
    namespace: str | None
    watch: str
    labels: str | None = None
    name: str | None = None

    def query(self) -> dict[str, str]:
        """Give what a list and a watch are asked with."""
        asked = {}
        if self.labels is not None:
            asked["labelSelector"] = self.labels
        if self.name is not None:
            asked["fieldSelector"] = f"metadata.name={self.name}"
        return asked


def called(resource: Resource, namespace: str | None, of: str | None = None) -> str:
    """Name a watch: what is watched, where, and for what."""
    return " ".join(part for part in (str(resource), namespace, of) if part)

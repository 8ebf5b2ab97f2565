"""The sections of the configuration that say where endpoints are found beside those it names.

All kinds give endpoints of the same form as `endpoints`: an address, its model, its event ports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kvatlas.common import limits
from kvatlas.common.section import STRICT

EVENTS_PORT: Final = 5557
REPLAY_PORT: Final = 5558

_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
"""A name in Kubernetes or DNS."""
_TargetPort = Annotated[int, Field(ge=1, le=65_535)]


class Discovery(BaseModel):
    """What all kinds have in common.

    Attributes:
        model: name of one of `models` that what is found serves; without it the one that there
            is, or, of several, the one that the engine lists.
        scheme: how engines are spoken to.
        events_port: where an engine publishes KV events (rank r is r ports higher), "ask" to have
            it from its `/kv_event_sources`, None for no events.
        replay_port: alike; not used with "ask".
        api_key_file: file with the key that engines ask for.
        labels: of all endpoints found, for filters; those of pods are added to them.
    """

    model_config = STRICT

    model: Annotated[str, Field(min_length=1)] | None = None
    scheme: Literal["http", "https"] = "http"
    events_port: _TargetPort | Literal["ask"] | None = EVENTS_PORT
    replay_port: _TargetPort | None = REPLAY_PORT
    api_key_file: Path | None = None
    labels: Annotated[dict[str, str], Field(max_length=limits.LABELS_PER_ENDPOINT_MAX)] = {}


class PodsDiscovery(Discovery):
    """Ready pods of a label selector, watched.

    Attributes:
        namespace: of the pods; without it our own.
        selector: of labels, as kubectl takes it.
        ports: that engines listen on; of several, each is a data-parallel rank of its own, one
            event port higher than the one before.
    """

    kind: Literal["pods"]
    namespace: _Name | None = None
    selector: Annotated[str, Field(min_length=1, max_length=4_096)]
    ports: Annotated[list[_TargetPort], Field(min_length=1, max_length=8)] = [8000]


class PoolDiscovery(Discovery):
    """Ready pods of an InferencePool, watched with its objectives and rewrites.

    Attributes:
        name: of the pool.
        namespace: of pool and pods; without it our own.
        group: of the pool's API.
    """

    kind: Literal["inference-pool"]
    name: _Name
    namespace: _Name | None = None
    group: Literal["inference.networking.k8s.io", "inference.networking.x-k8s.io"] = (
        "inference.networking.k8s.io"
    )


class DnsDiscovery(Discovery):
    """All addresses of a name, such as a headless Service's, asked again and again.

    Attributes:
        host: to resolve.
        ports: as of pods.
        interval_s: between two questions.
    """

    kind: Literal["dns"]
    host: _Name
    ports: Annotated[list[_TargetPort], Field(min_length=1, max_length=8)] = [8000]
    interval_s: Annotated[float, Field(ge=0.1, le=3_600)] = 5.0


class FileDiscovery(Discovery):
    """A YAML or JSON file with a list of endpoints, read again when it changes.

    Attributes:
        path: of the file: a list of entries as under `endpoints`, whose `model`, `events` and
            `replay` may be left out.
    """

    kind: Literal["file"]
    path: Path


AnyDiscovery = Annotated[
    PodsDiscovery | PoolDiscovery | DnsDiscovery | FileDiscovery, Field(discriminator="kind")
]
KINDS: Final = ("pods", "inference-pool", "dns", "file")
"""Of them."""


class KubernetesSettings(BaseModel):
    """How the API server is reached; in a pod nothing of it is needed.

    Attributes:
        kubeconfig: file to use instead of the pod's service account.
        context: of that file; without it its current one.
        resync_s: everything is listed anew after so long, whatever watches have told.
    """

    model_config = STRICT

    kubeconfig: Path | None = None
    context: str | None = None
    resync_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0

    @model_validator(mode="after")
    def _context_is_of_a_file(self) -> Self:
        if self.context is not None and self.kubeconfig is None:
            raise ValueError("context needs kubeconfig")
        return self

"""Which endpoints a pod is: one for each of its ports that is active. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvatlas.common import limits
from kvatlas.common.discovery.found import endpoint_at
from kvatlas.common.discovery_settings import Discovery
from kvatlas.common.kube.pod import ACTIVE_PORTS, OURS, Pod
from kvatlas.common.settings import EndpointSettings

EVENTS_PORT: Final = f"{OURS}events-port"
REPLAY_PORT: Final = f"{OURS}replay-port"
MODEL: Final = f"{OURS}model"
POOL_LABEL: Final = f"{OURS}pool"
POD_LABEL: Final = f"{OURS}pod"
"""Labels that say where an endpoint is from: `<namespace>/<name>`."""

_PORT_MAX: Final = 65_535
_LABELS_FIRST: Final = (
    "llm-d.ai/",
    "kvatlas.dev/",
    "inference.networking.k8s.io/",
    "app.kubernetes.io/",
    "leaderworkerset.sigs.k8s.io/",
    "topology.kubernetes.io/",
)
"""Beginnings of labels that filters go by, the most wanted first; then those without a slash."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the endpoints of a source have in common.

    Attributes:
        ports: rank by rank.
        pool: `<namespace>/<name>` of theirs, if they have one.
    """

    discovery: Discovery
    ports: tuple[int, ...]
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a pod is.

    Attributes:
        ignored: names of its annotations that cannot be read.
    """

    endpoints: tuple[EndpointSettings, ...]
    ignored: tuple[str, ...] = ()


NOTHING: Final = Found(())


def endpoints_of(pod: Pod, place: Place) -> Found:
    """Give the endpoints of a pod: none while it takes no requests."""
    if pod.host is None:
        return NOTHING
    ignored: list[str] = []
    read = _Annotations(pod.annotations, ignored)
    settings = place.discovery
    asked = settings.events_port if isinstance(settings.events_port, int) else None
    own = settings.model_copy(
        update={
            "events_port": read.port(EVENTS_PORT, asked),
            "replay_port": read.port(REPLAY_PORT, settings.replay_port),
            "model": read.model() or settings.model,
            "labels": {},
        }
    )
    active, labels = read.active(place.ports), _labels(pod, place)
    endpoints = tuple(
        endpoint_at(own, pod.host, port, rank, labels)
        for rank, port in enumerate(place.ports)
        if port in active
    )
    return Found(endpoints, tuple(dict.fromkeys(ignored)))


class _Annotations:
    """Read a pod's annotations; what cannot be read is as if it were not there.

    Args:
        ignored: told the names of those.
    """

    def __init__(self, annotations: Mapping[str, str], ignored: list[str]) -> None:
        self._annotations = annotations
        self._ignored = ignored

    def port(self, name: str, otherwise: int | None) -> int | None:
        """Read a port, or "none"."""
        text = self._annotations.get(name)
        if text is None:
            return otherwise
        if text.strip() == "none":
            return None
        found = _port(text)
        if found is None:
            self._ignored.append(name)
            return otherwise
        return found

    def model(self) -> str | None:
        """Read the name of its model."""
        text = self._annotations.get(MODEL)
        if text is not None and not 1 <= len(text) <= limits.MODEL_NAME_CHARS_MAX:
            self._ignored.append(MODEL)
            return None
        return text

    def active(self, ports: tuple[int, ...]) -> frozenset[int]:
        """Read which ports are in use: all, where it is not said."""
        name = next((each for each in ACTIVE_PORTS if each in self._annotations), None)
        if name is None:
            return frozenset(ports)
        found = [_port(part) for part in self._annotations[name].split(",") if part.strip()]
        known = frozenset(port for port in found if port is not None)
        if None in found or not known <= frozenset(ports):
            self._ignored.append(name)
        # Said so that nothing of it can be read it says nothing; an empty text says none.
        return known if known or not found else frozenset(ports)


def _port(text: str) -> int | None:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    return int(text) if 1 <= int(text) <= _PORT_MAX else None


def _labels(pod: Pod, place: Place) -> dict[str, str]:
    """Give the labels of a pod's endpoints: ours, the configured ones, then the pod's."""
    ours = {POD_LABEL: f"{pod.namespace}/{pod.name}"}
    if place.pool is not None:
        ours[POOL_LABEL] = place.pool
    labels = {**ours, **place.discovery.labels, **ours}
    for name in sorted(pod.labels, key=_label_order):
        labels.setdefault(name, pod.labels[name])
    return dict(list(labels.items())[: limits.LABELS_PER_ENDPOINT_MAX])


def _label_order(name: str) -> tuple[int, str]:
    for at, beginning in enumerate(_LABELS_FIRST):
        if name.startswith(beginning):
            return at, name
    return len(_LABELS_FIRST) + (1 if "/" in name else 0), name

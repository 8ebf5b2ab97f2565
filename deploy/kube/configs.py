"""The configuration as each pod would read it: its file, and the variables of its environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Final

from pydantic import BaseModel

from deploy.kube.documents import (
    TAKERS,
    Document,
    containers,
    name_of,
    named,
    pod,
    ports,
    title,
    workloads,
)
from kvatlas.common import limits
from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import ENV_PREFIX, Settings, load
from kvatlas.router.profiles import build_profile

FILE: Final = "config.yaml"


def configurations(documents: list[Document]) -> Iterator[tuple[Document, Settings]]:
    """Read what each workload of ours reads; those with faults are left out."""
    for workload in _configured(documents):
        settings = _read(documents, workload)
        if isinstance(settings, Settings):
            yield workload, settings


def config_faults(documents: list[Document]) -> Iterator[str]:
    """List what the services would refuse, and what the pods have not that they need."""
    for workload in _configured(documents):
        settings = _read(documents, workload)
        if isinstance(settings, Settings):
            faults = [*_file_faults(workload, settings), *_port_faults(workload, settings)]
        else:
            faults = list(settings)
        yield from (f"{title(workload)}: {fault}" for fault in faults)


def _configured(documents: list[Document]) -> list[Document]:
    return [
        workload
        for workload in workloads(documents)
        if any("--config" in each.get("args", []) for each in containers(workload))
    ]


def _read(documents: list[Document], workload: Document) -> Settings | tuple[str, ...]:
    (volume,) = [v for v in pod(workload)["volumes"] if v["name"] == "config"]
    content = named(documents, "ConfigMap", volume["configMap"]["name"])
    if content is None:
        return (f"there is no ConfigMap {volume['configMap']['name']}",)
    variables = _variables(documents, workload)
    return _checked(content["data"][FILE], tuple(sorted(variables.items())))


@cache
def _checked(text: str, variables: tuple[tuple[str, str], ...]) -> Settings | tuple[str, ...]:
    """Do as `kvatlas check-config` does; give the settings, or all that is wrong with them."""
    with tempfile.TemporaryDirectory(prefix="kva-") as folder:
        path = Path(folder) / FILE
        path.write_text(text, encoding="utf-8")
        try:
            with _environment(dict(variables)):
                settings = load(path)
            build_profile(settings.router)
        except ConfigError as error:
            return tuple(error.faults)
    return settings


def _variables(documents: list[Document], workload: Document) -> dict[str, str]:
    """Give a container's variables as Kubernetes would set them."""
    (container,) = pod(workload)["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        held = named(documents, "ConfigMap", source["configMapRef"]["name"])
        found |= held["data"] if held else {}
    return found | {each["name"]: each.get("value", "") for each in container.get("env", [])}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Have these variables of ours, and no others, for a while."""
    own = {name: value for name, value in os.environ.items() if name.startswith(ENV_PREFIX)}
    try:
        for name in own:
            del os.environ[name]
        os.environ.update(variables)
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(own)


def _file_faults(workload: Document, settings: Settings) -> Iterator[str]:
    """Find files that the configuration names and no volume has."""
    (container,) = pod(workload)["containers"]
    folders = {PurePath(mount["mountPath"]) for mount in container["volumeMounts"]}
    asked = [PurePath(container["args"][container["args"].index("--config") + 1])]
    tokenizes = name_of(workload) in (*TAKERS, "doctor")
    for path in [*asked, *_paths(settings), *(_folders(settings) if tokenizes else ())]:
        if not folders.intersection(path.parents):
            yield f"nothing is mounted for {path}"
    volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
    for mount in container["volumeMounts"]:
        kept = volumes[mount["name"]].get("secret", {}).get("items")
        inside = [p for p in _paths(settings) if PurePath(mount["mountPath"]) in p.parents]
        lacking = {path.name for path in inside} - {item["path"] for item in kept or []}
        if kept is not None and lacking:
            yield f"{mount['mountPath']} has no {', '.join(sorted(lacking))}"


def _paths(value: Any) -> Iterator[PurePath]:
    """Give all files that settings name."""
    if isinstance(value, PurePath):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)


def _folders(settings: Settings) -> Iterator[PurePath]:
    """Give the tokenizers that are folders; a hub id would be fetched, which policies forbid."""
    for model in settings.models:
        if model.tokenizer != "demo":
            yield PurePath(model.tokenizer)


def _port_faults(workload: Document, settings: Settings) -> Iterator[str]:
    """Hold the ports that settings name against those that the pod opens, and its time to end."""
    service, router = name_of(workload), settings.router
    wanted = {
        "router": {"http": router.port, "admin": router.admin_port},
        "picker": {
            "grpc": settings.picker.port,
            "health": settings.picker.health_port,
            "admin": router.admin_port,
        },
        "indexer": {"admin": settings.indexer.admin_port},
        "engine": {"http": settings.engine.port, **_event_ports(settings)},
        "doctor": {},
    }[service]
    if ports(workload) != wanted:
        yield f"listens on {wanted}, opens {ports(workload)}"
    hosts = {
        "router": [router.host, router.admin_host],
        "picker": [settings.picker.host, router.admin_host],
        "indexer": [settings.indexer.admin_host],
        "engine": [settings.engine.host],
    }
    if any(host != "0.0.0.0" for host in hosts.get(service, [])):  # noqa: S104 - a pod's address
        yield "listens on loopback, where no probe arrives"
    grace = pod(workload).get("terminationGracePeriodSeconds", 30)
    if service in TAKERS and grace <= router.pre_stop_s + router.drain_s + limits.LINGER_S:
        yield f"is killed after {grace} s, before it has drained"
    if service in TAKERS and router.pre_stop_s < limits.PRE_STOP_S:
        yield "a Service needs longer to forget a pod than router.pre_stop_s"


def _event_ports(settings: Settings) -> dict[str, int]:
    given = {"events": settings.engine.events, "replay": settings.engine.replay}
    return {name: int(url.rsplit(":", 1)[1]) for name, url in given.items() if url}

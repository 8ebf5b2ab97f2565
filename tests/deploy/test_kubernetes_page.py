"""docs/KUBERNETES.md names what there is, and all of it."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
import yaml

from deploy.kube.rbac import needed
from deploy.kube.render import K8S, ROOT
from kvatlas.cli.main import app

PAGE = (ROOT / "docs/KUBERNETES.md").read_text("utf-8")
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined] # a group, as there are several
PARTS = {"redis-settings", "api-access", "autoscale"}
"""Components of components."""


def blocks(language: str = "") -> list[str]:
    """List the page's blocks of code."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_component_and_overlay_is_named() -> None:
    """In the tables at its top."""
    named = set(re.findall(r"`([a-z0-9/-]+)`", PAGE.split("## Ten minutes")[0]))
    components = {folder.name for folder in (K8S / "components").iterdir()}
    assert components - PARTS <= named
    overlays = {f"k8s/overlays/{folder.name}" for folder in (K8S / "overlays").iterdir()}
    assert {name for name in named if name.startswith("k8s/overlays/")} == overlays


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:apply -[kf] )(k8s/\S+)", PAGE))))
def test_what_is_applied_is_there(path: str) -> None:
    """Folders and files of every kubectl apply."""
    assert (ROOT / path).exists()


def test_files_that_are_named_are_there() -> None:
    """Those of this repository, in code and in links to other pages."""
    named = set(re.findall(r"`?\b((?:deploy|k8s)/[\w./-]+\w)", PAGE))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    linked = set(re.findall(r"\]\(([A-Z_]+\.md)", PAGE))
    assert [path for path in sorted(linked) if not (ROOT / "docs" / path).exists()] == []


def test_the_overlay_of_your_own_has_components_of_ours() -> None:
    """In an order that works: a doctor first, Redis ahead of its users."""
    (example,) = (yaml.safe_load(each) for each in blocks("yaml") if "Kustomization" in each)
    names = [path.rsplit("/", 1)[1] for path in example["components"]]
    assert all((K8S / "components" / name).is_dir() for name in names)
    assert names.index("doctor") < names.index("router")
    assert names.index("redis-external") < names.index("redis-users")


def test_commands_of_ours_exist() -> None:
    """Those that are run in pods, or before, with the options that they have."""
    called = re.findall(r"(?:-- |; )kvatlas ([^`|)\n]+)", PAGE)
    assert len(called) >= 4
    for command in called:
        words = shlex.split(command)
        known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_metrics_exist() -> None:
    """Each name of a metric stands in METRICS.md."""
    metrics = (ROOT / "docs/METRICS.md").read_text("utf-8")
    names = set(re.findall(r"kvatlas_router_([a-z_]+)", PAGE))
    assert names
    assert [name for name in names if not re.search(rf"`{name}[`{{]", metrics)] == []


def test_rights_are_those_of_the_table() -> None:
    """What the page says that service accounts may, is what they are held to."""
    rows = re.findall(r"^\| ([a-z, ]+) with `discover-(pods|pool)` \| (.*) \|$", PAGE, re.MULTILINE)
    said: dict[tuple[str, str], set[str]] = {}
    for services, kind, resources in rows:
        for service in services.split(", "):
            words = resources.removesuffix(" too").split(", ")
            said.setdefault((service, kind), set()).update(words)
    kinds = {"pods": {"pods"}, "pool": {"inference-pool"}}
    assert len(said) == 6
    for (service, kind), resources in said.items():
        assert {right.resource for right in needed(service, kinds[kind])} == resources

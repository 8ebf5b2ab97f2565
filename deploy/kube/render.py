"""Have kubectl render kustomizations, on disk or put together here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import yaml

from deploy.kube.documents import Document

ROOT: Final = Path(__file__).resolve().parents[2]
K8S: Final = ROOT / "k8s"
FOLDERS: Final = (
    *sorted(folder for folder in (K8S / "overlays").iterdir() if folder.is_dir()),
    K8S / "gateway",
)
"""Every kustomization that is applied as it stands."""
FETCHED: Final = Path.home() / ".cache/kvatlas/kubectl/kubectl"
"""Where deploy/kubectl.sh puts it."""
REDISES: Final = ("redis-single", "redis-sentinel", "redis-cluster", "redis-external")
_SIMULATED: Final = {
    "standalone": ("doctor", "router", "engines-simulated"),
    "gateway": ("doctor", "picker", "inference-pool", "engines-simulated", "discover-pool"),
}
_FURTHER: Final = ("api-keys", "monitoring")
COMBINATIONS: Final = tuple((mode, redis) for mode in _SIMULATED for redis in REDISES)
"""Who takes requests, with each Redis; what stands between them is the same in all overlays."""


def kubectl() -> str | None:
    """Find kubectl, which holds kustomize."""
    return shutil.which("kubectl") or (str(FETCHED) if FETCHED.exists() else None)


def render(folder: Path) -> list[Document]:
    """Render a kustomization.

    Raises:
        RuntimeError: kubectl is missing, or refuses it.
    """
    command = kubectl()
    if command is None:
        raise RuntimeError("kubectl is not on the PATH; deploy/kubectl.sh fetches one")
    done = subprocess.run(
        [command, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return _documents(done.stdout)


def render_combination(mode: str, redis: str) -> list[Document]:
    """Render an overlay that is not on disk.

    Raises:
        RuntimeError: kubectl is missing, or refuses it.
    """
    users = ["redis-users"] if redis in ("redis-single", "redis-external") else []
    names = [*_SIMULATED[mode], redis, *users, *_FURTHER]
    with tempfile.TemporaryDirectory(prefix="kva-") as made:
        folder = Path(made).resolve()
        up = os.path.relpath(K8S, folder)
        shutil.copy(K8S / "overlays" / mode / "config.yaml", folder)
        content = yaml.safe_load((K8S / "overlays" / mode / "kustomization.yaml").read_text())
        content["resources"] = [f"{up}/base"]
        content["components"] = [f"{up}/components/{name}" for name in names]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return render(folder)


def raw_documents(folder: Path) -> list[Document]:
    """Read what a kustomization is made of as it is written: no patches, no hashes, no images."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    found: list[Document] = []
    for name in [*content.get("resources", []), *content.get("components", [])]:
        path = folder / name
        if path.is_dir():
            found += raw_documents(path)
        else:
            found += _documents(path.read_text("utf-8"))
    return found


def _documents(text: str) -> list[Document]:
    """Read YAML by libyaml, which takes a tenth of the time."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]

"""The manifests of the base as they are written, for tests that have no kubectl."""

from __future__ import annotations

from typing import Any

import yaml

from deploy.manifests import FOLDERS


def base_documents() -> list[dict[str, Any]]:
    """Read them; what kustomize adds is not there."""
    base = FOLDERS[0]
    listed = yaml.safe_load((base / "kustomization.yaml").read_text("utf-8"))["resources"]
    texts = [(base / name).read_text("utf-8") for name in listed]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]

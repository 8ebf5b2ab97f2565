"""Overlays as kubectl renders them, for tests that look at them."""

from __future__ import annotations

from functools import cache

import pytest

from deploy.kube.documents import Document, named
from deploy.kube.render import K8S, kubectl, render

needs_kubectl = pytest.mark.skipif(kubectl() is None, reason="there is no kubectl")


@cache
def rendered(name: str) -> list[Document]:
    """Render one of the overlays, once; what is changed is to be copied first."""
    return render(K8S / "overlays" / name)


def one(documents: list[Document], kind: str, name: str) -> Document:
    """Find a document."""
    found = named(documents, kind, name)
    assert found is not None
    return found

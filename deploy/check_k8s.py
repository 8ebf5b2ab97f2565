"""Render every kustomization, validate it, and hold it against our own rules (make check-k8s)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

from deploy.kube.documents import Document
from deploy.kube.render import COMBINATIONS, FOLDERS, ROOT, kubectl, render, render_combination
from deploy.manifests import faults


def kustomizations() -> Iterator[tuple[str, Callable[[], list[Document]]]]:
    """Name all that is checked, and say how it is rendered."""
    for folder in FOLDERS:
        yield str(folder.relative_to(ROOT)), partial(render, folder)
    for mode, redis in COMBINATIONS:
        yield f"{mode} with {redis}", partial(render_combination, mode, redis)


def main() -> int:
    """Check all of them; the exit status is 1 when one has a fault."""
    failed = False
    print(f"check-k8s: rendered by {kubectl()} kustomize")
    for name, rendered in kustomizations():
        try:
            documents = rendered()
        except RuntimeError as error:
            print(f"check-k8s: {name}: {error}", file=sys.stderr)
            return 1
        found = faults(documents)
        for fault in found:
            print(f"check-k8s: {name}: {fault}", file=sys.stderr)
        failed = failed or bool(found)
        print(f"check-k8s: {name}: {len(documents)} documents, {len(found)} faults")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

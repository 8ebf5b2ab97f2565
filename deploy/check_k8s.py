"""Render every kustomization, validate it, and hold it against our own rules (make check-k8s)."""

from __future__ import annotations

import sys

from deploy.manifests import FOLDERS, ROOT, faults, render


def main() -> int:
    """Check all of them; the exit status is 1 when one has a fault."""
    failed = False
    for folder in FOLDERS:
        name = folder.relative_to(ROOT)
        try:
            documents = render(folder)
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

"""Write what the image and the wheel run on, as a CycloneDX bill of materials: sbom.py [OUT]."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "runtime.txt"
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Locked:
    """A package of the lock.

    Attributes:
        hashes: SHA-256 of the files that may be installed.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


def locked(text: str) -> Iterator[Locked]:
    """Read a lock file.

    Raises:
        ValueError: a package is not pinned, or has no hash.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not entry.strip():
            continue
        pinned, hashes = _PINNED.match(entry), tuple(_HASH.findall(entry))
        if pinned is None or not hashes:
            raise ValueError(f"not pinned by a hash: {entry[:60]}")
        yield Locked(pinned[1], pinned[2], hashes)


def bill(text: str) -> dict[str, Any]:
    """Make the bill of a lock file."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "kvatlas"}},
        "components": [
            {
                "type": "library",
                "name": each.name,
                "version": each.version,
                "purl": f"pkg:pypi/{each.name.lower()}@{each.version}",
            }
            for each in locked(text)
        ],
    }


def main() -> None:
    """Write it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "sbom.json"
    out.parent.mkdir(exist_ok=True)
    made = bill(LOCK.read_text(encoding="utf-8"))
    out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {len(made['components'])} packages")


if __name__ == "__main__":
    main()

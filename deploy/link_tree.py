"""Make the working copy importable in the environment that runs this, without build tools.

An editable install does the same but needs the build back end; `make demo` needs to be quick.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the .pth file that an editable install would write."""
    target = Path(sysconfig.get_paths()["purelib"]) / "_kvatlas_tree.pth"
    target.write_text(f"{ROOT}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Install the wheel of a folder into an empty environment, far from the tree, and use it there:
# check_wheel.sh DIST_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
wheel=$(realpath "$1"/kvatlas-*.whl)
work=$(mktemp -d "${TMPDIR:-/tmp}/kvatlas-wheel-XXXXXX")
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
pip install --no-deps --require-hashes -r requirements/runtime.txt
pip install --no-deps "$wheel"
cd "$work"
"$work/venv/bin/python" - "$root" <<'PY'
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

names = {Path(str(file)).parts[0] for file in metadata.files("kvatlas")}
own = {name for name in names if name != ".." and not name.endswith(".dist-info")}
assert own == {"kvatlas"}, f"the wheel claims {sorted(own)}"
for folder in Path(sys.argv[1]).iterdir():
    installed = Path(sysconfig.get_paths()["purelib"]) / folder.name
    assert folder.name == "kvatlas" or not (folder.is_dir() and installed.exists()), installed
print("the wheel claims the name kvatlas and no other")
PY
"$work/venv/bin/kvatlas" version
"$work/venv/bin/kvatlas" demo

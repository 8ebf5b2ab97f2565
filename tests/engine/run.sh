#!/usr/bin/env bash
# make test-engine: random requests to real render servers, one model at a time; then two real vLLM
# servers (CPU), an indexer, two routers, and users that talk.
# KVATLAS_VLLM_ENV names an environment that has vLLM already.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvatlas
folder=${KVATLAS_VLLM_ENV:-$cache/vllm-0.32.0}
unset KVATLAS_VLLM_ENV
mkdir -p "$cache"
tests/engine/install.sh "$folder"
model=$cache/tiny-model
rm -rf "$model"
HF_HUB_OFFLINE=1 "$folder/bin/python" tests/engine/make_model.py common/prompt/demo_model "$model"
# Renders first: it is the shorter half, and no match is right without it.
.venv/bin/python -m tests.engine.render_compare --vllm "$folder/bin/vllm"
exec .venv/bin/python -m tests.engine.drive --vllm "$folder/bin/vllm" --model "$model" "$@"

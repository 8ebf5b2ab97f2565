#!/usr/bin/env bash
# make test-engine, all against real vLLM (CPU): random requests to render servers, one model at a
# time; a render service; messages and responses beside the simulated engine's; the streams of one
# engine; an engine with a hybrid model; then two engines, an indexer, two routers, and users that
# talk.
# KVATLAS_VLLM_ENV names an environment that has vLLM already.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvatlas
folder=${KVATLAS_VLLM_ENV:-$cache/vllm-0.32.0}
unset KVATLAS_VLLM_ENV
mkdir -p "$cache"
tests/engine/install.sh "$folder"
model=$cache/tiny-model
rm -rf "$model" "$model-hybrid"
HF_HUB_OFFLINE=1 "$folder/bin/python" tests/engine/make_model.py common/prompt/demo_model "$model"
# Renders first: no match is right without them.
.venv/bin/python -m tests.engine.render_compare --vllm "$folder/bin/vllm"
.venv/bin/python -m tests.engine.render_service --vllm "$folder/bin/vllm" --model "$model"
.venv/bin/python -m tests.engine.paths --vllm "$folder/bin/vllm" --model "$model"
.venv/bin/python -m tests.engine.streams --vllm "$folder/bin/vllm" --model "$model"
HF_HUB_OFFLINE=1 "$folder/bin/python" tests/engine/make_model.py common/prompt/demo_model "$model-hybrid" hybrid
.venv/bin/python -m tests.engine.hybrid --vllm "$folder/bin/vllm" --model "$model-hybrid"
exec .venv/bin/python -m tests.engine.drive --vllm "$folder/bin/vllm" --model "$model" "$@"

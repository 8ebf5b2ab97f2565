# Needs python3 (3.11 or newer) and make; every target does its own set-up in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
RUNTIME := $(VENV)/.runtime-stamp
DEV := $(VENV)/.dev-stamp
UV_VENV := .cache/uv
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-engine test-valkey chaos soak lint format tokenizer lock wheel sbom audit check-wheel check-image check-k8s bench bench-index bench-routing bench-proxy bench-gateway clean

help: ## Say what there is to make
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvatlas needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# The locks hold every dependency. Without --no-deps pip looks for newer releases of what has extras
# (coverage[toml]) and stops when it finds one, because that one is not locked.
# The package itself is linked in by a .pth file, as an editable install would do, so that running
# it needs no build tools.
$(RUNTIME): requirements/runtime.txt | $(BIN)/python
	$(PIP) install --no-deps --require-hashes -r requirements/runtime.txt
	$(BIN)/python deploy/link_tree.py
	@touch $@

$(DEV): requirements/dev.txt pyproject.toml | $(BIN)/python
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@ $(RUNTIME)

setup: $(DEV) ## Install everything for development into .venv

demo: $(RUNTIME) ## Compare kvatlas with round robin and least load on simulated engines
	$(BIN)/python -m kvatlas.cli.main demo

up: $(RUNTIME) ## Run Redis, four simulated engines, an indexer and two routers
	$(BIN)/python -m kvatlas.cli.main up

test: $(DEV) ## Run the tests, two at a time (WORKERS=1: one after the other)
	$(PYTEST) -q -n $(or $(WORKERS),2) --dist loadfile $(TESTS)

test-engine: $(DEV) ## Run against two real vLLM servers (installs vLLM, about 3 GB)
	PYTHON="$(PYTHON)" tests/engine/run.sh

test-valkey: $(DEV) ## Run the tests of the index on Valkey (fetches it into ~/.cache/kvatlas)
	tests/valkey.sh tests/contract tests/chaos tests/property

chaos: $(DEV) ## Inject every fault of docs/FAULTS.md at full size, and write it (about ten minutes)
	$(BIN)/python -m tests.chaos.report

soak: $(DEV) ## Run events, chats and faults for ten minutes (MINUTES=10), then compare and look for leaks
	$(BIN)/python -m tests.soak.run --minutes $(or $(MINUTES),10)

lint: $(DEV) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests bench deploy
	$(BIN)/lint-imports

format: $(DEV) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tokenizer: $(DEV) ## Train the demo tokenizer anew
	$(BIN)/python -m kvatlas.cli.train_tokenizer

wheel: $(DEV) ## Build the wheel into dist/
	rm -rf dist && $(BIN)/python -m build --no-isolation --wheel -o dist . >/dev/null && ls dist

sbom: $(DEV) ## Write what kvatlas runs on into dist/sbom.json (CycloneDX)
	$(BIN)/python deploy/sbom.py

audit: $(DEV) ## Ask PyPI for advisories on the locked packages; those that it cannot tell of are named
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements/runtime.txt

check-wheel: wheel ## Install the wheel into an empty environment and run the demo from there
	PYTHON="$(PYTHON)" deploy/check_wheel.sh dist

check-image: $(DEV) ## Build the image with buildah and start indexer and router in it (root)
	$(BIN)/python deploy/check_image.py

check-k8s: $(DEV) ## Render and validate the Kubernetes manifests (fetches a kubectl where there is none)
	PYTHON=$(BIN)/python deploy/kubectl.sh
	$(BIN)/python deploy/check_k8s.py

bench: $(DEV) ## Run the benchmarks
	for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

bench-index: $(DEV) ## Measure the index: memory, writes, lookups, growth (JSON=FILE for the figures)
	$(BIN)/python -m bench.index $(if $(JSON),--json "$(JSON)")

bench-routing: $(DEV) ## Compare routers and peers on a trace (45 minutes; QUICK=1, JSON=FILE)
	$(BIN)/python -m bench.routing $(if $(QUICK),--quick) $(if $(JSON),--json "$(JSON)")

bench-proxy: $(DEV) ## Measure what the router costs, peers beside it (QUICK=1, JSON=FILE, MARKDOWN=FILE, ARGS=)
	$(BIN)/python -m bench.proxy $(if $(QUICK),--quick) $(if $(JSON),--json "$(JSON)") \
	  $(if $(MARKDOWN),--markdown "$(MARKDOWN)") $(ARGS)

bench-gateway: $(DEV) ## Measure Envoy with the picker, the proxy beside it (QUICK=1, MARKDOWN=FILE, ARGS=)
	$(BIN)/python -m bench.gateway $(if $(QUICK),--quick) \
	  $(if $(MARKDOWN),--markdown "$(MARKDOWN)") $(ARGS)

lock: ## Lock the dependencies anew
	test -x $(UV_VENV)/bin/uv || { $(PYTHON) -m venv $(UV_VENV) && $(UV_VENV)/bin/pip install -q uv; }
	$(UV_VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements/runtime.txt
	$(UV_VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --extra test --extra dev --extra bench \
	  pyproject.toml -o requirements/dev.txt

clean: ## Remove what was built and installed
	rm -rf $(VENV) dist build .cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two commands do everything: `make quickstart` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell tools/find_python.sh)
PY := $(VENV)/bin/python
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q
WORKERS ?= 2
# What a file's tests share is made once; the files that take longest are not last in the alphabet.
BY_FILE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# pip would compile on one core, and all packages' tests too.
define install
$(PY) -m pip install -q --no-compile $(1)
@$(PY) -m compileall -qq -j $(WORKERS) -x '/tests?/' $(VENV)/lib/python*/site-packages || true
endef

# Every process of every test would compile this project anew where the environment forbids bytecode.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format types architecture unit distributed grid cluster parity end-to-end gpu docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

quickstart: $(VENV)/.base ## from nothing to a trained and sampled model, on CPU or GPU
	@PYTHON=$(PY) tools/quickstart.sh

test: lint types architecture unit distributed grid cluster parity gpu end-to-end ## everything that CI runs

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements/requirements.txt | $(PY)
	$(call install,-r requirements/requirements.txt)
	@touch $@

$(VENV)/.dev: $(wildcard requirements/*.txt) | $(PY)
	$(call install,-r requirements/requirements.txt -r requirements/requirements-dev.txt)
	@touch $(VENV)/.base $@

lint: $(VENV)/.dev ## formatting and lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/.dev ## rewrite the sources to the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

types: $(VENV)/.dev ## mypy on the lower floors
	$(VENV)/bin/mypy

architecture: $(VENV)/.dev ## floors, cycles, public surface, fresh docs
	$(PYTEST) tests/architecture

unit: $(VENV)/.dev ## one file per module of the package
	$(PYTEST) -n $(WORKERS) tests/unit

distributed: $(VENV)/.dev ## real processes over gloo
	$(PYTEST) $(BY_FILE) tests/distributed

grid: $(VENV)/.dev ## every choice in every layout (docs/choices.md)
	$(PYTEST) tests/grid

cluster: $(VENV)/.dev ## jobs on several hosts, which namespaces of this machine stand for
	$(PYTEST) $(BY_FILE) tests/cluster

parity: $(VENV)/.dev ## against Hugging Face, and back-end against back-end
	$(PYTEST) -n $(WORKERS) tests/parity

gpu: $(VENV)/.dev ## what only a GPU can show; skipped, with the reason, where there is none
	$(PYTEST) tests/gpu

end-to-end: $(VENV)/.dev ## the real command lines, README included
	$(PYTEST) $(BY_FILE) tests/end_to_end

docs: $(VENV)/.dev ## write configs/neox_arguments.md and docs/choices.md anew
	$(PY) -m megatron.neox_arguments.reference
	$(PY) -m tests.grid.table

clean: ## remove the virtual environment and the tools' caches; data and checkpoints stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist

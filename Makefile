# `make demo` and `make test` do all the set-up on a fresh machine; a second call reuses it.
#   PYTHON      interpreter that creates the environment (>= 3.11)     make test PYTHON=python3.12
#   VENV        directory of the environment                           make test VENV=/tmp/venv
#   DEMO_FLAGS  passed to `fenchel demo`                                make demo DEMO_FLAGS=--quick
# pip's own configuration applies: point it at the CPU wheels of torch to keep the download small.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
DEMO_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A worker a core and a thread a worker; fixtures are made once a file.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
    --numprocesses logical --maxprocesses 8 --dist loadfile

# The stamps of the sets of extras. `dev` contains `all`, so it serves the demo as well.
ALL := $(VENV)/.installed-all
DEV := $(VENV)/.installed-dev
RUNTIME := $(or $(wildcard $(DEV)),$(ALL))

.PHONY: help demo test test-slow lint docs pictures bench clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: $(RUNTIME)  ## distil small language models on this machine and write a report
	@$(BIN)/fenchel demo $(DEMO_FLAGS)

test: $(DEV)  ## run the tests
	@$(PYTEST)

test-slow: $(DEV)  ## run the tests marked slow
	@$(PYTEST) -m slow

lint: $(DEV)  ## check style, types and that docs/methods.md is fresh
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python docs/build_methods.py --check

docs: $(DEV)  ## write docs/methods.md from the docstrings
	@$(BIN)/python docs/build_methods.py

pictures: $(DEV)  ## draw the pictures of the guides
	@$(BIN)/python docs/build_pictures.py

bench: $(VENV)/.installed-bench  ## run the benchmarks of a CPU and write their tables; 20 minutes on 2 cores
	@$(BIN)/python benchmarks/softargmax.py
	@$(BIN)/python benchmarks/losses.py
	@$(BIN)/python benchmarks/head.py
	@$(BIN)/python benchmarks/distillation_trl.py memory
	@$(BIN)/python benchmarks/projections.py
	@$(BIN)/python benchmarks/transport.py
	@$(BIN)/python benchmarks/routers.py
	@$(BIN)/python benchmarks/table.py

clean:  ## remove caches and builds; the environment and the results stay
	@rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find benchmarks docs src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by itself: the largest download fails or succeeds before anything else is done.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: fenchel needs Python >= 3.11, and $(PYTHON) is not one;" \
	        "name one that is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing torch into $(VENV)"
	@$(PIP) torch
	@echo "Installing fenchel[$*] into $(VENV); the first time this takes a few minutes"
	@$(PIP) -e ".[$*]"
	@touch $@

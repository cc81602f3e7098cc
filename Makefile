# moerun: `make run` answers a prompt with the demo model, `make test` checks everything.
#   BACKEND=auto|cpu|cuda|vulkan|metal   what the engine is built for
#   PYTHON=python3.12                    which Python the virtual environment uses

PYTHON ?= python3
BACKEND ?= auto
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= What is moerun?

.DEFAULT_GOAL := help
.PHONY: help run dev engine test test-fast test-engine test-gpu lint type format bench bench-stream golden readme clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## set up, then show the demo model's plan and its answer to PROMPT
	@$(BIN)/moerun plan demo
	@echo
	@echo ">>> $(PROMPT)"
	@$(BIN)/moerun run demo "$(PROMPT)"

test: dev ## what CI runs: lint, types, all tests with the real engine
	$(MAKE) --no-print-directory lint type
	$(BIN)/python -m pytest -m "not gpu and not slow"

test-fast: dev ## tests without the engine and without most of the seeded cases
	$(BIN)/python -m pytest -q -m "not engine and not gpu and not slow and not many"

test-engine: dev ## only the tests that load the real engine
	$(BIN)/python -m pytest -m "engine and not gpu"

test-gpu: dev ## tests that need a GPU
	$(BIN)/python -m pytest -m gpu

lint: dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: dev ## types
	$(BIN)/mypy

format: dev ## rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev ## moerun beside plain llama-cpp-python, in one run
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.decode_overhead
	$(BIN)/python -m benchmarks.slots

bench-stream: dev ## moerun beside stock where a model does not fit; Linux, best as root, half an hour
	$(BIN)/python -m benchmarks.streaming --model skewed --limits fits --rounds 4 --tokens 256
	$(BIN)/python -m benchmarks.streaming --model skewed --mode cache --preload 8 --limits 40 --profile
	$(BIN)/python -m benchmarks.streaming --model skewed --mode cache --preload 8 --limits 50 --tokens 16
	$(BIN)/python -m benchmarks.streaming --model skewed --mode paging --preload 8 --limits 60
	$(BIN)/python -m benchmarks.streaming --model uniform --mode cache --preload 8 --limits 40,60 --tokens 64
	$(BIN)/python -m benchmarks.streaming --model skewed --mode cache --preload 8 --limits 20,30 --sides moerun --tokens 128 --simulate
	$(BIN)/python -m benchmarks.streaming --model demo --limits 40,60
	$(BIN)/python -m benchmarks.streaming --model expert-2.7,expert-12.6,expert-25 --mode cache --preload 4 --limits 40 --sides moerun --prompt 1
	$(BIN)/python -m benchmarks.streaming --model 235b --limits 13 --sides moerun --tokens 4 --rounds 1

golden: dev ## rewrite the golden plans; look at the difference before you commit it
	$(BIN)/python -m tests.golden

readme: dev ## rewrite the parts of README.md that programs print
	$(BIN)/python -m tests.readme

dev: $(VENV)/.dev

# A stamp for each stage, so that a second `make` starts at once.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Error: moerun needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Error: Python cannot make virtual environments here; sudo apt install python3-venv" >&2; \
	  rm -rf $(VENV); exit 2; }
	@touch $@

engine: $(VENV)/.python
	@$(BIN)/python scripts/build_engine.py --backend $(BACKEND)

$(VENV)/.run: pyproject.toml $(VENV)/.python | engine
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.python | engine
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.run

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
WORKERS ?= 2

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench bench-peers build-file clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## train a private model on the census data
	@$(BIN)/python tutorials/01_first_private_model.py

test: lint ## lint, then run the test suite
	@$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python tools/write_build.py --check

bench: $(VENV)/.dev ## private step over plain Keras step, accountants over their peers
	@$(BIN)/python benchmarks/step_ratio.py
	@$(BIN)/python benchmarks/accountants.py

bench-peers: $(VENV)/.dev ## the same for other libraries, each in an environment of its own
	@$(BIN)/python benchmarks/peer_ratio.py

build-file: $(VENV)/.dev ## write BUILD from the imports
	@$(BIN)/python tools/write_build.py

clean: ## remove the virtual environments and the caches
	@rm -rf $(VENV) .venv-peers .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The stamps are written last, so that a set-up that was cut off is done again.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "dp-train needs Python 3.11 or newer, and $(PYTHON) is not." \
	    "Name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python setup.py
	@echo "Installing into $(VENV) (once, some minutes)"
	@$(PIP) install --editable '.[tensorboard]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python setup.py
	@echo "Installing into $(VENV) with the test tools (once, some minutes)"
	@$(PIP) install --editable '.[dev,plot,probability,tensorboard]'
	@touch $@

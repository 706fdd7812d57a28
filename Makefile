# make quickstart and make test are all the set-up there is: each installs what is missing into $(VENV) first.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# A CPU wheel index for machines where pip would otherwise bring the CUDA build:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLING := $(VENV)/.installing

.PHONY: help install quickstart test lint

help: ## this text
	@echo "make quickstart  install if needed, then measure a scaling law (ARGS='data=cifar10 sweeps=cifar10')"
	@echo "make test        install if needed, then run the tests (ARGS='-k schedule')"
	@echo "make lint        ruff, mypy and the import contracts"
	@echo "make install     only the installation into VENV=$(VENV)"
	@echo "PYTHON=...       the interpreter, 3.11 or newer (now $(PYTHON))"
	@echo "TORCH_INDEX=...  an index of CPU wheels of torch, e.g. https://download.pytorch.org/whl/cpu"

install: $(INSTALLED)

quickstart: $(INSTALLED)
	@$(BIN)/varscale quickstart $(ARGS)

test: $(INSTALLED)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# .installing marks an installation that has begun; where it is still there, that one was interrupted, and the
# environment is made anew. PIP_BUILD_CONSTRAINT is what newer pip reads for build backends, PIP_CONSTRAINT older.
$(INSTALLED): pyproject.toml constraints.txt hatch_build.py
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not found; name an interpreter: make ... PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "varscale needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make ... PYTHON=python3.11" >&2; exit 1; }
	@if [ -e $(INSTALLING) ]; then echo "the last installation was interrupted; starting afresh"; $(PYTHON) -m venv --clear $(VENV); \
	  elif ! $(BIN)/python -m pip --version > /dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(INSTALLING)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-input $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	@rm $(INSTALLING) && touch $@

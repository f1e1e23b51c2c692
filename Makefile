# Every target sets itself up from nothing, with pip, into .venv. What pip may install is in
# constraints.txt; the set-up is repeated when that file or a pyproject.toml changes its content.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# 3.11 where there is a choice: the oldest that is supported.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INPUTS := constraints.txt pyproject.toml policies/pyproject.toml plugins/vllm/pyproject.toml \
	plugins/example-policy/pyproject.toml
STAMP := .venv/.made-$(shell cat $(INPUTS) | sha256sum | cut -c 1-16)
PYTEST_LOG := .make/pytest.log

heading = @printf '\n==== %s ====\n' '$(1)'

.PHONY: help demo test check bench clean setup style spelling types contracts tests mutants closing

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

demo: setup ## A small torch model served on this machine's CPU, balanced by eplbd
	@$(BIN)/eplbd demo

test: setup style spelling types contracts tests mutants closing ## Everything that has to hold

check: setup style spelling types contracts ## The loop of a developer: seconds, no torch, no processes
	$(call heading,tests without the slow ones)
	@HYPOTHESIS_PROFILE=quick $(BIN)/pytest -q -m 'not slow'

bench: setup ## Benchmarks, each printing its ratio
	@$(BIN)/pytest -s tests/bench

clean: ## Remove the environment, caches and build results
	rm -rf .venv .make dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(STAMP)

# pip first: the one that venv brings along may know neither --group nor --build-constraint.
$(STAMP): | .make
	$(call heading,set-up of .venv (from nothing: a minute or two))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eplbd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt \
		--group dev -e '.[cpu,offline]' -e policies -e plugins/vllm -e plugins/example-policy
	@rm -f .venv/.made-*
	@touch $@

.make:
	@mkdir -p $@

style: setup
	$(call heading,style: ruff)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

spelling: setup
	$(call heading,spelling: codespell)
	@$(BIN)/codespell

types: setup
	$(call heading,types: mypy)
	@$(BIN)/mypy

# Without its cache: that one remembers, per importing file, what a name resolved to when the imported
# module did not exist yet.
contracts: setup
	$(call heading,architecture: import-linter)
	@$(BIN)/lint-imports --no-logo --no-cache

tests: setup
	$(call heading,tests (and the wheels in a clean environment): pytest)
	@$(BIN)/pytest 2>&1 | tee $(PYTEST_LOG)

mutants: setup ## Break the code on purpose; the tests have to notice
	$(call heading,mutants)
	@$(BIN)/python -m tests.mutants

# The result of the tests again, where a reader of a long log looks for it.
closing:
	$(call heading,all of it holds; pytest said)
	@tail -n 1 $(PYTEST_LOG)

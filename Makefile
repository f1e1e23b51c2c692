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

# A real vLLM on a CPU, in an environment of its own: an engine pins hundreds of packages. What is in
# it is in plugins/vllm/constraints-cpu.txt. Its torch is the CPU build of that name: where pip is not
# shown one, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
VLLM_BIN := .venv-vllm/bin
VLLM_INPUTS := plugins/vllm/constraints-cpu.txt plugins/vllm/pyproject.toml tests/vllm/stub/pyproject.toml
VLLM_STAMP := .venv-vllm/.made-$(shell cat $(VLLM_INPUTS) | sha256sum | cut -c 1-16)
NO_VLLM := .make/no-vllm

# Where this is set, every process that a test starts compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

heading = @printf '\n==== %s ====\n' '$(1)'

.PHONY: help demo demo-vllm test test-vllm check bench bench-vllm bench-policies clean setup setup-vllm try-vllm style spelling types contracts tests fuzz mutants closing

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 16

demo: setup ## A small torch model served on this machine's CPU, balanced by eplbd
	@$(BIN)/eplbd demo

demo-vllm: setup setup-vllm ## A real vLLM on this machine's CPU, balanced by eplbd; ARGS="--shape deepseek"
	@$(VLLM_BIN)/python -m eplbd_vllm.demo --daemon $(BIN)/eplbd $(ARGS)

test: setup style spelling types contracts try-vllm tests mutants closing ## Everything that has to hold

check: setup style spelling types contracts ## The loop of a developer: a minute or two, no torch, no processes
	$(call heading,tests without the slow ones)
	@HYPOTHESIS_PROFILE=quick $(BIN)/pytest -q -n logical -m 'not slow'

bench: setup ## Benchmarks, each printing its ratio
	@$(BIN)/pytest -s tests/bench

bench-vllm: setup setup-vllm ## Token latency of a real vLLM with eplbd, without it, and amid epochs
	@$(VLLM_BIN)/python -m eplbd_vllm.demo --latency --daemon $(BIN)/eplbd

# Peers' sources come from the package index, or from EPLB_PEERS; their figures are kept in .make/fronts.
bench-policies: setup ## Policies beside the peers': balance, moves, time; ARGS=--all for every shape
	@$(BIN)/python -m tests.bench.fronts $(or $(ARGS),--quick)

clean: ## Remove the environment, caches and build results
	rm -rf .venv .venv-vllm .make dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(STAMP)

# pip first: the one that venv brings along may know neither --group nor --build-constraint.
$(STAMP): | .make
	$(call heading,set-up of .venv (from nothing: a minute or two))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eplbd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt \
		--group dev -e '.[cpu,offline,top]' -e policies -e plugins/vllm -e plugins/example-policy
	@$(BIN)/eplbd check > .make/check.log # compiles the default policy, once
	@rm -f .venv/.made-*
	@touch $@

setup-vllm: setup $(VLLM_STAMP) ## The environment of the real vLLM: 2 GB

# By the pip of .venv: the one that venv brings along may know no --build-constraint.
$(VLLM_STAMP): $(STAMP)
	$(call heading,set-up of .venv-vllm (from nothing: four minutes))
	@rm -f .venv-vllm/.made-*
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	@$(BIN)/python -m pip --python $(VLLM_BIN)/python install --quiet --no-compile --no-deps \
		-r plugins/vllm/constraints-cpu.txt
	@$(BIN)/python -m pip --python $(VLLM_BIN)/python install --quiet --no-deps \
		--build-constraint constraints.txt ./tests/vllm/stub -e . -e plugins/vllm
	@touch $@

# Not every platform has a wheel of it, nor every network the patience: `make test` holds without a
# real vLLM, too. Why there is none is kept where the tests that are skipped for it, and the closing
# lines, find it.
try-vllm: setup | .make
	@rm -f $(NO_VLLM)
	@timeout 15m $(MAKE) --no-print-directory setup-vllm 2>&1 | tee .make/vllm.log || \
		{ grep -m 1 '^ERROR' .make/vllm.log | cut -c 1-300 || echo 'see .make/vllm.log'; } >$(NO_VLLM)

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

# Without the environment of the real vLLM its tests are skipped, as are those of it that take many
# minutes; the summary names them.
tests: setup
	$(call heading,tests (and the wheels in a clean environment): pytest)
	@$(BIN)/pytest --durations=25 --durations-min=5 --session-timeout 3600 2>&1 | tee $(PYTEST_LOG)

test-vllm: setup setup-vllm ## A real vLLM in more ways than `make test` has time for
	$(call heading,tests with a real vLLM)
	@EPLBD_NIGHTLY=1 $(BIN)/pytest tests/vllm

fuzz: setup ## A million hostile frames; ARGS='--frames N', or a target: cluster, decoders, session
	@$(BIN)/python -m tests.fuzz $(ARGS)

mutants: setup ## Break the code on purpose; the tests have to notice
	$(call heading,mutants)
	@$(BIN)/python -m tests.mutants

# The result of the tests again, where a reader of a long log looks for it.
closing:
	$(call heading,all of it holds; pytest said)
	@tail -n 1 $(PYTEST_LOG)
	@test ! -e $(NO_VLLM) || echo "NOT tried: a real vLLM ($$(cat $(NO_VLLM)))"

# Every entrance of the project. `make help` lists them.
# Paths are relative and recipes quote nothing but their own words, so a checkout may live under a path with spaces.

PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
DATA_DIR ?= .mws
PORT ?= 8080
GRPC_BASE_PORT ?= 50051

.DEFAULT_GOAL := help
.PHONY: help up down logs setup setup-dev test check fmt lint types layers protos check-protos lock bench chaos fuzz sdk-tests clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

up: setup ## start the gateway on embedded defaults and print a request to try
	@$(PY) -m services.cli.main up --detach --any-port --port $(PORT) --grpc-base-port $(GRPC_BASE_PORT) --data-dir $(DATA_DIR)
	@$(PY) -m services.cli.main demo --data-dir $(DATA_DIR)

down: ## drain and stop what `make up` started
	@$(PY) -m services.cli.main down --data-dir $(DATA_DIR)

logs: ## follow the logs of what `make up` started
	@tail -n 20 -F $(DATA_DIR)/log/*.log

# A stamp is newer than the lock that it was made from, so a second run costs nothing.
setup: .venv/.runtime-stamp
setup-dev: .venv/.dev-stamp

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime-stamp: .venv/.created requirements.lock pyproject.toml
	@echo "installing the locked packages"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev-stamp: .venv/.runtime-stamp requirements-dev.lock
	@echo "installing the locked development packages"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# Two at a time: for half of their time tests wait for processes. A file stays together, since its tests share what they start.
test: setup-dev ## run every test, real processes and SDKs included
	$(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: setup-dev fmt lint types layers check-protos check-deploy ## the quick gate: format, lint, types, layers, protos, manifests

fmt:
	$(BIN)/ruff format --check --quiet .

lint:
	$(BIN)/ruff check --quiet .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports --no-cache

protos: setup-dev ## regenerate the committed stubs from proto/
	@$(PY) .ci/stubs.py proto

check-protos:
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@$(PY) .ci/stubs.py --check proto

.PHONY: check-deploy
check-deploy: ## render and validate the manifests, where the tools are present
	@$(PY) -m pytest -q tests/deploy -m "not slow"

.PHONY: manifests
manifests: setup-dev ## write the front proxy's configuration anew
	$(PY) -m deploy.k8s.front_proxy.bootstrap > deploy/k8s/base/envoy.yaml

lock: setup-dev ## resolve the locks anew
	$(PY) -m piptools compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-header --allow-unsafe --extra build --output-file requirements.lock pyproject.toml
	$(PY) -m piptools compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-header --allow-unsafe --extra build --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

bench: setup-dev ## the yardsticks: ours beside its peers and its floors, in ratios
	$(PY) -m tests.bench $(BENCH_ARGS)

chaos: setup-dev ## kill -9 under load, then reconcile
	$(PY) -m pytest tests/faults --run-long $(PYTEST_ARGS)

FUZZ_MINUTES ?= 10
fuzz: setup-dev ## damaged requests and upstream streams for FUZZ_MINUTES, with fresh seeds
	$(PY) -m tests.fuzz --minutes $(FUZZ_MINUTES) $(PYTEST_ARGS)

sdk-tests: setup-dev ## every supported SDK, old and new, Python and Node, and the SDKs' own tests, against a running gateway
	$(PY) -m pytest tests/sdk --run-long $(PYTEST_ARGS)

clean: ## remove everything that the targets above made
	rm -rf .venv build .mws .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Commands of this project; `make` alone lists them. Needs make and Python 3.11 or newer with venv.
#
# The virtual environment is made from the lock files, with every hash checked. It is made again when a lock file or
# pyproject.toml changes. ARGS is passed to the program of a target: make test ARGS="-k lease"
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Test processes. Tests wait for two thirds of their time, so two cores can run four processes.
TEST_PROCESSES ?= 4
IMAGE ?= dev.local/async-processor:$(shell git describe --always --dirty 2>/dev/null || echo dev)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --require-hashes --only-binary :all:
# kubectl and valkey-server may come from Python packages, whose commands are in this folder.
export PATH := $(abspath $(BIN)):$(PATH)
# Without stored byte code, each process of a demo or test would compile the product again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup servers demo demo-loop dev test test-loaded lint fmt types imports bench bench-slack chaos \
	chaos-release manifests pictures lock audit sbom image clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'no virtual environment without the package python3-venv'; exit 1; }

# The packages that the product and its demo need. The product itself is installed as a link, by setuptools; `compat`
# makes it a plain path, which mypy and editors can follow.
$(VENV)/.runtime: requirements.txt requirements-build.txt pyproject.toml | $(BIN)/python
	@echo 'Installing into $(VENV) ...'
	@$(INSTALL) -r requirements-build.txt -r requirements.txt
	@PYTHONWARNINGS=ignore $(PIP) install --quiet --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo 'Installing the development tools ...'
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.dev ## create the virtual environment with all packages

servers: ## install the servers that tests and benchmarks can use (Debian, needs root)
	@tests/servers/install

# --- see it run

demo: $(VENV)/.runtime ## run requests through a real queue, a handler and a failing gateway; print a table of the results
	@$(BIN)/async-processor demo $(ARGS)

# For CI: the demo must also pass on a busy machine. Stops at the first run that fails.
RUNS ?= 30
BUSY ?= 4
demo-loop: $(VENV)/.runtime ## run the demo RUNS times (30), beside BUSY processes that each use a core (4)
	@busy=(); for ((n = 0; n < $(BUSY); n++)); do while :; do :; done & busy+=($$!); done; \
	trap '[ $${#busy[@]} = 0 ] || kill "$${busy[@]}" 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	for ((run = 1; run <= $(RUNS); run++)); do \
		echo "=== demo $$run of $(RUNS), beside $(BUSY) busy processes"; \
		$(BIN)/async-processor demo $(ARGS) || { echo "demo-loop: run $$run of $(RUNS) failed"; exit 1; }; \
	done; echo "demo-loop: $(RUNS) of $(RUNS) runs passed"

dev: $(VENV)/.runtime ## keep the demo's stack running, to try commands
	@$(BIN)/async-processor dev $(ARGS)

# --- checks

test: $(VENV)/.dev ## run all tests except the long ones, or some: ARGS="tests/poller -k lease"; without its server, a test is skipped
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadgroup -m 'not chaos and not bench' $(ARGS)

# A busy machine must only slow the tests down. The busy processes have the tests' priority; with a higher one they would
# leave the tests one percent of the CPU.
test-loaded: $(VENV)/.dev ## run all tests three times beside four busy processes, at the lowest priority
	@for busy in 1 2 3 4; do nice -n 19 $(BIN)/python -c 'while True: pass' & pids="$$pids $$!"; done; \
	trap "kill $$pids" EXIT; \
	for run in 1 2 3; do \
		nice -n 19 $(MAKE) --no-print-directory test ARGS='--timeout=600 $(ARGS)' || exit 1; \
	done

lint: $(VENV)/.dev ## check rules and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.dev ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## check types with mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## check with import-linter which room imports which
	$(BIN)/lint-imports

manifests: $(VENV)/.dev ## build every combination of manifests and check it
	$(BIN)/python -m pytest -q tests/manifests $(ARGS)

pictures: $(VENV)/.dev ## make the pictures in docs/images from the running product (needs Chromium)
	$(BIN)/python -m tests.pictures

# --- measurements and long runs

bench: $(VENV)/.dev ## measure throughput, CPU, memory and latency, compared with a bare forwarder
	$(BIN)/python -m tests.bench $(ARGS)

bench-slack: $(VENV)/.dev ## measure for each gate how many idle slots are used and how real-time traffic is affected
	$(BIN)/python -m tests.bench.slack $(ARGS)

chaos: $(VENV)/.dev ## run 150,000 requests with 1,000 kills; large requests, a failing tenant, a full Redis
	$(BIN)/python -m tests.chaos --size full $(ARGS)

chaos-release: $(VENV)/.dev ## the same with 1,000,000 requests and 5,000 kills
	$(BIN)/python -m tests.chaos --size release $(ARGS)

# --- supply chain

LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' pyproject.toml

# Keeps pinned versions. ARGS=--upgrade upgrades all of them, ARGS="--upgrade-package NAME" one.
lock: $(VENV)/.dev ## compile the lock files from pyproject.toml
	$(LOCK) $(ARGS) --constraint requirements-build.txt --extra server --extra demo --extra otel \
		--output-file requirements.txt
	$(LOCK) $(ARGS) --constraint requirements-build.txt --constraint requirements.txt --extra dev \
		--output-file requirements-dev.txt

# Strict: fails for a package about which the index has no data, because that does not mean it has no vulnerabilities.
audit: $(VENV)/.dev ## check the locked packages for known vulnerabilities
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off $(ARGS) \
		-r requirements.txt -r requirements-build.txt

sbom: $(VENV)/.dev ## write the bill of materials of the locked packages (CycloneDX) to dist/sbom.json
	@mkdir -p dist
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.json $(ARGS) requirements.txt

image: ## build the container image; PYTHON_DIGEST=sha256:... is the base (see Dockerfile)
	@test -n '$(PYTHON_DIGEST)' || { echo 'PYTHON_DIGEST: expected a digest, got nothing; the head of the Dockerfile says how to get it'; exit 1; }
	docker build --tag '$(IMAGE)' --build-arg PYTHON_DIGEST='$(PYTHON_DIGEST)' \
		--build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" $(ARGS) .

clean: ## remove the virtual environment and all generated files
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

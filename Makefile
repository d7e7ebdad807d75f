# Everything that is done with this tree; `make` alone lists it. Needs make and Python 3.11 or newer with venv.
#
# The environment is made once, from the lock files alone and with every hash checked; it is made again when
# a lock file or pyproject.toml changes. ARGS goes to the program behind a target: make test ARGS="-k lease"
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Test processes: two thirds of the time tests wait for something to happen, so that two cores carry four of them.
TEST_PROCESSES ?= 4
IMAGE ?= dev.local/async-processor:$(shell git describe --always --dirty 2>/dev/null || echo dev)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --require-hashes --only-binary :all:
# kubectl and valkey-server may come from packages: their commands are beside python.
export PATH := $(abspath $(BIN)):$(PATH)
# Without stored byte code each process of a demo or test would compile the product again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup servers demo demo-loop dev test test-loaded lint fmt types imports bench bench-slack chaos \
	chaos-release manifests pictures lock audit sbom image clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'no virtual environment without the package python3-venv'; exit 1; }

# What the product and its demo need. setuptools is for the package itself, which is installed as a link: `compat` writes
# a plain path, which mypy and editors can follow.
$(VENV)/.runtime: requirements.txt requirements-build.txt pyproject.toml | $(BIN)/python
	@echo 'Installing into $(VENV) ...'
	@$(INSTALL) -r requirements-build.txt -r requirements.txt
	@PYTHONWARNINGS=ignore $(PIP) install --quiet --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo 'Installing the tools of development ...'
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.dev ## make the virtual environment with everything in it

servers: ## install the servers that tests and benchmarks can use (Debian, needs root)
	@tests/servers/install

# --- see it run

demo: $(VENV)/.runtime ## requests through a real queue, handler and failing gateway: one run with a closing table
	@$(BIN)/async-processor demo $(ARGS)

# For CI: the demo must pass beside busy neighbours too. RUNS and BUSY are counts; ends with the first run that fails.
RUNS ?= 30
BUSY ?= 4
demo-loop: $(VENV)/.runtime ## RUNS demos in a row (30) beside BUSY processes that use a core each (4)
	@busy=(); for ((n = 0; n < $(BUSY); n++)); do while :; do :; done & busy+=($$!); done; \
	trap '[ $${#busy[@]} = 0 ] || kill "$${busy[@]}" 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	for ((run = 1; run <= $(RUNS); run++)); do \
		echo "=== demo $$run of $(RUNS), beside $(BUSY) busy processes"; \
		$(BIN)/async-processor demo $(ARGS) || { echo "demo-loop: run $$run of $(RUNS) failed"; exit 1; }; \
	done; echo "demo-loop: $(RUNS) of $(RUNS) runs passed"

dev: $(VENV)/.runtime ## the same stack, kept up to play with
	@$(BIN)/async-processor dev $(ARGS)

# --- checks

test: $(VENV)/.dev ## all tests but the long ones; tests whose server is missing are skipped, and it is named
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadgroup -m 'not chaos and not bench' $(ARGS)

# Tests wait for events, so that a busy machine makes them slower and nothing else. The busy processes have the same
# priority: beside those of a higher one, the tests would get one percent of the processor.
test-loaded: $(VENV)/.dev ## all tests beside four busy processes, three times in a row, at the lowest priority
	@for busy in 1 2 3 4; do nice -n 19 $(BIN)/python -c 'while True: pass' & pids="$$pids $$!"; done; \
	trap "kill $$pids" EXIT; \
	for run in 1 2 3; do \
		nice -n 19 $(MAKE) --no-print-directory test ARGS='--timeout=600 $(ARGS)' || exit 1; \
	done

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.dev ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## who may import whom: import-linter
	$(BIN)/lint-imports

manifests: $(VENV)/.dev ## build every combination of manifests and check it
	$(BIN)/python -m pytest -q tests/manifests $(ARGS)

pictures: $(VENV)/.dev ## take the pictures in docs/images again, from the running product (needs Chromium)
	$(BIN)/python -m tests.pictures

# --- measurements and long runs

bench: $(VENV)/.dev ## throughput, CPU, memory and latency, beside a bare forwarder
	$(BIN)/python -m tests.bench $(ARGS)

bench-slack: $(VENV)/.dev ## what the gates give real-time traffic and queued requests
	$(BIN)/python -m tests.bench.slack $(ARGS)

chaos: $(VENV)/.dev ## 1,000 kills over 150,000 requests, large requests, a failing tenant, a full Redis
	$(BIN)/python -m tests.chaos --size full $(ARGS)

chaos-release: $(VENV)/.dev ## 5,000 kills over 1,000,000 requests
	$(BIN)/python -m tests.chaos --size release $(ARGS)

# --- supply chain

LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' pyproject.toml

# Keeps what is pinned; ARGS=--upgrade takes the newest, ARGS="--upgrade-package NAME" one of them.
lock: $(VENV)/.dev ## compile the lock files from pyproject.toml
	$(LOCK) $(ARGS) --constraint requirements-build.txt --extra server --extra demo --extra otel \
		--output-file requirements.txt
	$(LOCK) $(ARGS) --constraint requirements-build.txt --constraint requirements.txt --extra dev \
		--output-file requirements-dev.txt

# Strict: a package of which nothing is known fails it, so that no answer is not taken for a good one.
audit: $(VENV)/.dev ## known vulnerabilities of what is locked
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off $(ARGS) \
		-r requirements.txt -r requirements-build.txt

sbom: $(VENV)/.dev ## bill of materials of what is locked (CycloneDX), into dist/sbom.json
	@mkdir -p dist
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.json $(ARGS) requirements.txt

image: ## the container image; PYTHON_DIGEST=sha256:... names the base (see Dockerfile)
	@test -n '$(PYTHON_DIGEST)' || { echo 'PYTHON_DIGEST is not set: the head of the Dockerfile tells how to get it'; exit 1; }
	docker build --tag '$(IMAGE)' --build-arg PYTHON_DIGEST='$(PYTHON_DIGEST)' \
		--build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" $(ARGS) .

clean: ## remove the environment and everything that was generated
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# headrace: `make demo` and `make test` need only Python 3.11, 3.12 or 3.13 and a package registry.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ifndef LOCK
LOCK := $(shell $(PYTHON) requirements/choose.py)
endif
DATA ?=
PYTEST_ARGS ?=

.PHONY: setup demo test test-fast test-real test-peers debian13-test check lock bench prism k8s-schemas clean

setup: $(VENV)/.installed

$(VENV)/uv/bin/uv: requirements/uv.txt
	mkdir -p $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(VENV)/uv -r requirements/uv.txt

$(VENV)/.installed: $(LOCK) setup.py $(wildcard models/*/*.c) $(VENV)/uv/bin/uv
	test -x $(BIN)/python || $(VENV)/uv/bin/uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(VENV)/uv/bin/uv pip sync --quiet --require-hashes --python $(BIN)/python $(LOCK)
	$(VENV)/uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python requirements/compile.py runs & runs=$$!; \
	  $(BIN)/python requirements/compile.py streams && wait $$runs
	touch $@

# A file's tests run in one process, as they share what is slow to make; WORKERS=0 runs all in one.
WORKERS ?= auto
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# In about a minute: what is neither slow nor needs the machine for itself.
test-fast: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not serial" $(PYTEST_ARGS)

# Brokers, streams and engines, two files at a time, as most of their time is waiting, and the other sets of libraries; parts that
# are missing are skipped aloud. What fails is tried once more with nothing beside it, aloud: a fault fails again.
test-real: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m serial $(PYTEST_ARGS) || { echo "AGAIN: what has failed above, once more"; \
	  $(BIN)/python -m pytest -m serial --last-failed --last-failed-no-failures none $(PYTEST_ARGS); }
	$(MAKE) test VENV=build/core LOCK=requirements/locks/core.txt PYTEST_ARGS="-m core_set"
	if [ "$$(id -u)" = 0 ] && command -v debootstrap >/dev/null; then $(MAKE) debian13-test; \
	else echo "SKIPPED: tests of Debian 13's libraries, as there is no root or no debootstrap"; fi

# Other products beside headrace; needs the peers' packages (benchmarks/README.md), and is run by hand.
test-peers: setup
	$(BIN)/python benchmarks/stream.py peers --rows 100000

# A good part of the tests, in a Debian 13 tree with the second set of libraries; needs root and debootstrap.
debian13-test: setup
	deploy/debian13/test.sh -n $(WORKERS) --dist loadfile $(or $(PYTEST_ARGS),-m both_sets)

demo: setup
	$(BIN)/headrace demo --output demo-output $(if $(DATA),--data $(DATA))

bench: setup
	$(BIN)/python benchmarks/run.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

prism:
	deploy/prism/build.sh

k8s-schemas: setup
	deploy/k8s/build.sh

COMPILE = $(VENV)/uv/bin/uv pip compile --override requirements/overrides.txt --generate-hashes --no-emit-index-url \
  --no-emit-find-links --upgrade --quiet --custom-compile-command "make lock"
ALL_IN = requirements/core.in requirements/models.in requirements/tables.in requirements/tfdv.in requirements/dev.in

lock: $(VENV)/uv/bin/uv
	$(COMPILE) $(ALL_IN) --override requirements/overrides-py311.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --output-file requirements/locks/py311.txt
	$(COMPILE) $(ALL_IN) --python-version 3.12 --python-platform x86_64-manylinux_2_39 --output-file requirements/locks/py312.txt
	$(COMPILE) $(ALL_IN) --python-version 3.13 --python-platform x86_64-manylinux_2_39 --output-file requirements/locks/py313.txt
	$(COMPILE) requirements/core.in requirements/dev.in --universal --python-version 3.11 --output-file requirements/locks/core.txt
	$(COMPILE) requirements/moto.in --universal --python-version 3.11 --output-file requirements/locks/moto.txt

clean:
	rm -rf $(VENV) build demo-output *.egg-info

include deploy/flink.mk
include deploy/kafka.mk
include deploy/pulsar.mk
include deploy/nightly.mk
include deploy/registry.mk
include deploy/feast.mk
include deploy/s3.mk
include deploy/kserve.mk

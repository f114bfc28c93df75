# headrace: `make demo` and `make test` need only Python 3.11 and a package registry.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
PYTEST_ARGS ?=

.PHONY: setup demo test check lock bench prism k8s-schemas clean

setup: $(VENV)/.installed

$(VENV)/uv/bin/uv: requirements/uv.txt
	mkdir -p $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(VENV)/uv -r requirements/uv.txt

$(VENV)/.installed: requirements/lock.txt requirements/overrides.txt setup.py $(VENV)/uv/bin/uv
	test -x $(BIN)/python || $(VENV)/uv/bin/uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(VENV)/uv/bin/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements/lock.txt
	$(VENV)/uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

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

lock: $(VENV)/uv/bin/uv
	$(VENV)/uv/bin/uv pip compile requirements/dev.in --override requirements/overrides.txt --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --upgrade --quiet --output-file requirements/lock.txt \
	  --custom-compile-command "make lock"

clean:
	rm -rf $(VENV) build demo-output *.egg-info

include deploy/flink.mk

# A schema registry: `make registry` gets Apicurio's; `make registry-test` runs the tests that need a real one.
.PHONY: registry registry-test

registry:
	deploy/registry/build.sh

registry-test: setup registry
	$(BIN)/python -m pytest -m serial tests/pipelines/brokers/test_registry_real.py

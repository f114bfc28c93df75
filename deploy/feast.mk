# Feast: `make feast` installs it beside headrace; `make feast-test` runs the tests that need it.
.PHONY: feast feast-test feast-lock

feast: setup
	deploy/environment.sh deploy/feast/requirements.txt build/feast

feast-test: feast
	$(BIN)/python -m pytest -m serial tests/end_to_end/test_feast.py

feast-lock: $(VENV)/uv/bin/uv
	$(VENV)/uv/bin/uv pip compile deploy/feast/feast.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --upgrade --quiet --custom-compile-command "make feast-lock" --output-file deploy/feast/requirements.txt

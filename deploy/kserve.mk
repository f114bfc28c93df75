# KServe's Python client, and its server with XGBoost, a peer in benchmarks/serve.py: `make kserve` installs it beside headrace; `make kserve-test` runs the test that needs it.
.PHONY: kserve kserve-test kserve-lock

kserve: setup
	deploy/environment.sh deploy/kserve/requirements.txt build/kserve

kserve-test: kserve
	$(BIN)/python -m pytest -m serial tests/end_to_end/test_kserve.py

kserve-lock: $(VENV)/uv/bin/uv
	$(VENV)/uv/bin/uv pip compile deploy/kserve/kserve.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --upgrade --quiet --override requirements/overrides.txt --custom-compile-command "make kserve-lock" --output-file deploy/kserve/requirements.txt

# Recipes for `headrace nightly`: `make airflow` makes the environment that their tests read the DAG with.
.PHONY: airflow airflow-lock

airflow: setup
	deploy/nightly/build.sh

airflow-lock: $(VENV)/uv/bin/uv
	$(VENV)/uv/bin/uv pip compile deploy/nightly/airflow.in --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --upgrade --quiet --custom-compile-command "make airflow-lock" --output-file deploy/nightly/requirements.txt

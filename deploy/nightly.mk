# Recipes for `headrace nightly`: `make airflow` makes the environment that their tests read the DAG with.
.PHONY: airflow

airflow:
	deploy/nightly/build.sh

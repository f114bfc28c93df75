# Flink: `make flink` builds the job server and collects a cluster's jars; `make flink-test` runs on them.
.PHONY: flink flink-test

flink:
	deploy/flink/build.sh

flink-test: setup flink
	$(BIN)/python -m pytest tests/engines/test_flink.py

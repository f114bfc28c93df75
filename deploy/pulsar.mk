# Pulsar: `make pulsar` collects a broker's jars; `make pulsar-test` runs on one.
.PHONY: pulsar pulsar-test

pulsar:
	deploy/pulsar/build.sh

pulsar-test: setup pulsar
	$(BIN)/python -m pytest tests/pipelines/brokers/test_contract.py tests/pipelines/brokers/test_pulsar_broker.py \
	  tests/end_to_end/test_stream_pulsar.py

# Kafka: `make kafka` collects a broker's jars; `make kafka-test` runs the tests that need a real one.
.PHONY: kafka kafka-test

kafka:
	deploy/kafka/build.sh

kafka-test: setup kafka
	$(BIN)/python -m pytest -m serial tests/pipelines/brokers tests/end_to_end/test_stream_kafka.py \
	  tests/end_to_end/test_restart_kafka.py tests/end_to_end/test_transactional.py

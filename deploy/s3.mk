# An object store that speaks S3: `make s3` gets moto's server; `make s3-test` runs the tests that need it.
.PHONY: s3 s3-test

s3: setup
	deploy/environment.sh requirements/locks/moto.txt build/s3

s3-test: setup s3
	$(BIN)/python -m pytest -m serial tests/end_to_end/test_s3.py

"""Parts of benchmarks/serve.py: a client, a generator of load, and the peers."""

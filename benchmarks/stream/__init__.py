"""Parts of benchmarks/stream.py: what is published, what is read back, the processes, and the figures."""

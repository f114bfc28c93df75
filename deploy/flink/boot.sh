#!/bin/sh
# What a TaskManager starts as the worker of its Python steps (environment PROCESS): see boot.py.
here=$(cd "$(dirname "$0")" && pwd)
# Keep freed memory: a worker gets and gives back megabytes with each message, and fresh pages cost a fifth of its time.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864 MALLOC_ARENA_MAX=2
export ARROW_DEFAULT_MEMORY_POOL=system
exec "${HEADRACE_PYTHON:-$here/../../.venv/bin/python}" "$here/boot.py" "$@"

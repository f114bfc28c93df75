#!/bin/sh
# What a TaskManager starts as the worker of its Python steps (environment PROCESS): see boot.py.
here=$(cd "$(dirname "$0")" && pwd)
exec "${HEADRACE_PYTHON:-$here/../../.venv/bin/python}" "$here/boot.py" "$@"

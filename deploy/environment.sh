#!/bin/bash
# Install what a lock pins into an environment of its own, as its libraries and those of headrace need not agree:
# environment.sh LOCK FOLDER. What is there already stays.
set -euo pipefail
lock=$1 out=$2
bin=${VENV:-$(cd "$(dirname "$0")" && pwd)/../.venv}
inputs=$(sha256sum <"$lock")
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
"$bin/uv/bin/uv" venv --quiet --clear --python "$bin/bin/python" "$out"
"$bin/uv/bin/uv" pip sync --quiet --require-hashes --python "$out/bin/python" "$lock"
echo "$inputs" >"$out/inputs"

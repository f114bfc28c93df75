#!/bin/bash
# Install KServe's Python client, as requirements.txt pins it, into an environment of its own in build/kserve: its
# libraries and those of headrace need not agree. What is there already stays. deploy/kserve.mk tells how
# requirements.txt is made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/kserve}
bin=${VENV:-$here/../../.venv}
inputs=$(sha256sum <"$here/requirements.txt")
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
"$bin/uv/bin/uv" venv --quiet --clear --python "$bin/bin/python" "$out"
"$bin/uv/bin/uv" pip sync --quiet --require-hashes --python "$out/bin/python" "$here/requirements.txt"
echo "$inputs" >"$out/inputs"

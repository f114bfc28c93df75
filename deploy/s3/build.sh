#!/bin/bash
# Get moto's server, which speaks S3, into an environment of its own in build/s3. What is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
out=${1:-$root/build/s3}
lock=$root/requirements/locks/moto.txt
uv=$root/.venv/uv/bin/uv
inputs=$(sha256sum <"$lock")
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
"$uv" venv --quiet --allow-existing --python "$root/.venv/bin/python" "$out"
"$uv" pip sync --quiet --require-hashes --python "$out/bin/python" "$lock"
echo "$inputs" >"$out/inputs"

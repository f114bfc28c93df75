#!/bin/bash
# Make an environment of Airflow alone in build/airflow, to read airflow_dag.py with. What is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/airflow}
mkdir -p "$out"
out=$(cd "$out" && pwd)
inputs=$(cat "$here/build.sh" "$here/airflow.txt" | sha256sum)
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
"${PYTHON:-python3.11}" -m venv --clear "$out/venv"
"$out/venv/bin/pip" install --quiet --no-deps --requirement "$here/airflow.txt"
echo "$inputs" >"$out/inputs"

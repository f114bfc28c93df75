#!/bin/bash
# Collect a Pulsar broker's jars from a Maven repository into build/pulsar, each checked against SHA256SUMS.
# What is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/pulsar}
mkdir -p "$out"
out=$(cd "$out" && pwd)
inputs=$(cat "$here/broker.pom.xml" "$here/SHA256SUMS" | sha256sum)
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
rm -rf "$out/lib" "$out/work"
mkdir -p "$out/work"
cp "$here/broker.pom.xml" "$out/work/pom.xml"
mvn --quiet --batch-mode --file "$out/work" package
(cd "$out/work/target" && sha256sum --check --quiet --strict "$here/SHA256SUMS")
mv "$out/work/target/lib" "$out/lib"
rm -rf "$out/work"
echo "$inputs" >"$out/inputs"

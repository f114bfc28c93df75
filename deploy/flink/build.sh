#!/bin/bash
# Build Beam's job server for Flink and collect a cluster's jars, from a Maven repository, into build/flink.
# What is there already stays; every jar that comes from the repository is checked against SHA256SUMS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/flink}
mkdir -p "$out"
out=$(cd "$out" && pwd)
inputs=$(find "$here" \( -name '*.pom.xml' -o -name '*.java' -o -name SHA256SUMS \) | LC_ALL=C sort | xargs cat | sha256sum)
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
rm -rf "$out/lib" "$out/flink-job-server.jar" "$out/work"
for part in cluster job-server; do
  mkdir -p "$out/work/$part"
  cp "$here/$part.pom.xml" "$out/work/$part/pom.xml"
  if [ $part = job-server ]; then cp -r "$here/src" "$out/work/$part/"; fi
  mvn --quiet --batch-mode --file "$out/work/$part" package
done
(cd "$out/work" && sha256sum --check --quiet --strict "$here/SHA256SUMS")
mv "$out/work/cluster/target/lib" "$out/lib"
mv "$out/work/job-server/target/flink-job-server.jar" "$out/"
rm -rf "$out/work"
echo "$inputs" >"$out/inputs"

#!/bin/bash
# Get Apicurio Registry, which answers as Confluent's registry does, from a Maven repository into build/registry, checked
# against SHA256SUMS. What is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/registry}
mkdir -p "$out"
out=$(cd "$out" && pwd)
inputs=$(sha256sum <"$here/SHA256SUMS")
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
rm -rf "$out/lib" "$out/work"
mkdir "$out/work" "$out/lib"
mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
  -Dartifact=io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all -DoutputDirectory="$out/work"
(cd "$out/work" && sha256sum --check --quiet --strict "$here/SHA256SUMS")
tar --extract --gzip --file "$out"/work/*.tar.gz --directory "$out/lib"
rm -rf "$out/work"
echo "$inputs" >"$out/inputs"

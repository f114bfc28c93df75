#!/usr/bin/env bash
# Build kubeconform and the schemas of what the manifests use into build/k8s, once. It needs Go and Maven.
set -euo pipefail
KUBECONFORM=v0.8.0
KUBERNETES=v1.34.0
OPERATOR=1.10.0
here=$(cd "$(dirname "$0")" && pwd)
out=$here/../../build/k8s
mkdir -p "$out"
out=$(cd "$out" && pwd)
inputs=$(cat "$here/build.sh" "$here/schemas.py" | sha256sum)
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
GOBIN=$out go install -trimpath -ldflags='-s -w' "github.com/yannh/kubeconform/cmd/kubeconform@$KUBECONFORM"
kubernetes=$(go mod download -json "k8s.io/kubernetes@$KUBERNETES" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
mvn --quiet --batch-mode dependency:copy -DoutputDirectory="$out" -Dmdep.useBaseVersion=true \
  "-Dartifact=org.apache.flink:flink-kubernetes-operator-api:$OPERATOR"
"${PYTHON:-$here/../../.venv/bin/python}" "$here/schemas.py" "$kubernetes/api/openapi-spec/swagger.json" \
  "$out/flink-kubernetes-operator-api-$OPERATOR.jar" "$out/schemas"
echo "$inputs" >"$out/inputs"

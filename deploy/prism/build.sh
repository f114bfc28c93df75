#!/usr/bin/env bash
# Build Beam's Prism runner into build/prism with Go, once. It needs Go 1.26 or later and a Go module proxy.
set -euo pipefail
VERSION=${PRISM_VERSION:-v2.77.0}
cd "$(dirname "$0")/../.."
BIN="$PWD/build/prism"
if [[ -x $BIN/prism && $(cat "$BIN/VERSION" 2>/dev/null) == "$VERSION" ]]; then
  echo "build/prism/prism is $VERSION already"
  exit
fi
command -v go >/dev/null || { echo "Go is needed to build Prism: https://go.dev/dl" >&2; exit 1; }
mkdir -p "$BIN"
GOBIN=$BIN go install -trimpath -ldflags='-s -w' "github.com/apache/beam/sdks/v2/go/cmd/prism@$VERSION"
echo "$VERSION" > "$BIN/VERSION"
echo "built build/prism/prism $VERSION"

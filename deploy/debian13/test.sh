#!/usr/bin/env bash
# Run tests in a Debian 13 tree, with the Python 3.13 and the glibc that the second set of libraries needs.
#   deploy/debian13/test.sh [PYTEST ARGUMENTS]
# Needs root and debootstrap; takes three minutes the first time, and keeps the tree in build/debian13.
# Mounts are made in a namespace of their own, so that nothing of them is left whatever ends this.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "${HEADRACE_UNSHARED:-}" != yes ]; then
  HEADRACE_UNSHARED=yes exec unshare --mount --propagation private "$0" "$@"
fi

tree=$PWD/build/debian13
home=$tree/opt/work/headrace
if [ ! -e "$tree/.made" ]; then
  mkdir -p "$tree"
  debootstrap --variant=minbase --include=ca-certificates,libgomp1,make,python3,python3-pip,python3-venv \
    trixie "$tree" >"$tree.log" || { tail -n 20 "$tree.log"; exit 1; }
  touch "$tree/.made"
fi

# The checkout as it is, but for what is ignored; the data that tests look for beside it.
mkdir -p "$home" "$tree/opt/work/shared/data"
find "$home" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar -c --null -T - | tar -x -C "$home"
data=${HEADRACE_DATA:-$PWD/../shared/data}
[ ! -d "$data" ] || mount --bind "$data" "$tree/opt/work/shared/data"
mount -t proc proc "$tree/proc"
mount --bind /dev "$tree/dev"

# The network is this machine's: its names, its certificates.
cp -L /etc/resolv.conf /etc/hosts "$tree/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
certificates=/etc/ssl/certs/ca-certificates.crt
inside() {
  chroot "$tree" /usr/bin/env -i PATH=/opt/work/headrace/.venv/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 \
    SSL_CERT_FILE=$certificates PIP_CERT=$certificates PIP_ROOT_USER_ACTION=ignore \
    sh -c 'cd /opt/work/headrace && exec "$@"' - "$@"
}

inside make setup PYTHON=/usr/bin/python3.13

# One bundle, trained here: the same scores, line for line, there.
if [ -x .venv/bin/headrace ]; then
  scratch=$home/build/bundle
  mkdir -p "$scratch"
  .venv/bin/headrace sample "$scratch/events" --rows 60000
  .venv/bin/headrace train examples/card_fraud --source "$scratch/events/*.parquet" \
    --registry "sqlite:///$scratch/registry.db" --promote
  .venv/bin/headrace run examples/card_fraud --source "$scratch/events/*.parquet" --sink "$scratch/here" \
    --registry "sqlite:///$scratch/registry.db" --sink-format jsonl
  inside headrace run examples/card_fraud --source "build/bundle/events/*.parquet" --sink build/bundle/there \
    --registry sqlite:///build/bundle/registry.db --sink-format jsonl
  for kind in scores dead_letters quality; do
    diff -r "$scratch/here/$kind" "$scratch/there/$kind"
  done
  echo "one bundle, two sets of libraries: scores, dead letters and quality are the same"
fi

inside python -m pytest "$@"

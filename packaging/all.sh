#!/usr/bin/env bash
# Builds all packages of what is committed into dist/, for x86_64 and aarch64, with their checksums in SHA256SUMS.
# Needs what program.sh, crate.sh and python/build_wheel.sh need, and git.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "$(git status --porcelain)" ]; then
    echo "all.sh: packages are built of what is committed; commit or stash first" >&2
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
mkdir -p dist
rm -f dist/autocvd[-_]* dist/SHA256SUMS
for machine in ${MACHINES:-x86_64 aarch64}; do
    export MACHINE=$machine
    packaging/program.sh >/dev/null
    packaging/tar.sh
    packaging/deb.sh
    packaging/rpm.sh
    python/build_wheel.sh 2>"$log" || { tail -n 20 "$log"; exit 1; }
done
unset MACHINE
packaging/crate.sh
(cd dist && sha256sum autocvd[-_]* | tee SHA256SUMS)

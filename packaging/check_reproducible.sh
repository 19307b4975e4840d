#!/usr/bin/env bash
# Builds the packages of what is committed a second time, from a clone in another directory, with other directories
# of cargo's, and compares them with dist/SHA256SUMS (packaging/all.sh). Needs what all.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet "$here" "$work/elsewhere"
cd "$work/elsewhere"
# The same crates, under another path.
ln -s "${CARGO_HOME:-$HOME/.cargo}" "$work/cargo"
mkdir -p target
ln -s "$(cd "$here" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/packaging-tools" target/packaging-tools
CARGO_HOME=$work/cargo CARGO_TARGET_DIR=$work/elsewhere/target packaging/all.sh >/dev/null
diff "$here/dist/SHA256SUMS" dist/SHA256SUMS
echo "check_reproducible: $(wc -l <dist/SHA256SUMS) packages are the same to the byte"

#!/usr/bin/env bash
# Packs the source crate as it would be published, builds it, runs its tests where nothing else lies, and leaves it
# in dist/. Needs cargo.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh
cargo publish --dry-run --no-verify --locked --quiet "$@"
cargo package --locked --quiet "$@"
crate=$target/package/autocvd-$version.crate
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xf "$crate"
(cd "$work/autocvd-$version" && CARGO_TARGET_DIR=$target/crate-tests cargo test --quiet --locked)
cp "$crate" "$dist"
echo "dist/$(basename "$crate")"

#!/usr/bin/env bash
# Packs what program.sh built into dist/autocvd-VERSION-1.MACHINE.rpm. Needs cargo; cargo-generate-rpm is
# installed from crates.io.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh
need_tool cargo-generate-rpm 0.21.1
ln -sfn "$machine" target/packages/current
rpm=$dist/autocvd-$version-1.$machine.rpm
cargo-generate-rpm --target "$machine-unknown-linux-gnu" --auto-req disabled --payload-compress gzip --output "$rpm"
echo "dist/$(basename "$rpm")"

#!/usr/bin/env bash
# Builds what all packages hold into target/packages/MACHINE: the program, linked for glibc 2.17 and later by zig,
# its manual page, completions, and the licences of what is compiled in. MACHINE is x86_64 or aarch64. Needs cargo,
# rustup's std of another MACHINE, and python3; the rest comes from PyPI, in pinned versions.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh
reproducible "$PWD"

triple=$machine-unknown-linux-gnu
stage=target/packages/$machine
# What the scripts of the packages read; Cargo.toml names it for two of them.
rm -rf "$stage"
mkdir -p "$stage"
ln -sfn "$machine" target/packages/current

cargo-zigbuild zigbuild --quiet --release --locked --bin autocvd --target "$triple.$glibc"
cp "$target/$triple/release/autocvd" "$stage"

# The same text on all machines, printed by the program of this one.
native=$stage/autocvd
if [ "$machine" != "$(uname -m)" ]; then
    native_triple=$(uname -m)-unknown-linux-gnu
    cargo-zigbuild zigbuild --quiet --release --locked --bin autocvd --target "$native_triple.$glibc"
    native=$target/$native_triple/release/autocvd
fi
"$native" man >"$stage/autocvd.1"
"$native" completions bash >"$stage/autocvd.bash"
"$native" completions zsh >"$stage/_autocvd"
"$native" completions fish >"$stage/autocvd.fish"
python3 packaging/licences.py "$triple" >"$stage/THIRD-PARTY-LICENSES"
cp README.md CHANGELOG.md LICENSE packaging/autocvd.tmpfiles "$stage"
find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
echo "$stage"

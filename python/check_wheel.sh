#!/usr/bin/env bash
# Builds the source distribution, from it the wheel, installs that into a fresh environment, and tries the program
# and the function from there on fake GPUs. With a wheel as argument it tries that one; of a wheel for aarch64 the
# program alone, under qemu-user and on a fake driver of that kind. Needs cargo and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if (($#)) && [[ $1 = *aarch64* ]] && [ "$(uname -m)" != aarch64 ]; then
    # build_wheel.sh has left its tools.
    tools=$CARGO_TARGET_DIR/packaging-tools/bin
    CARGO_ZIGBUILD_PYTHON_PATH=$tools/python PATH=$tools:$PATH \
        cargo-zigbuild zigbuild --quiet -p fake-nvml --target aarch64-unknown-linux-gnu
    python3 -m zipfile -e "$1" "$work"
    program=$work/$(cd "$work" && echo autocvd-*.data/scripts/autocvd)
    chmod +x "$program"
    echo '{"gpus": [{}, {}, {}]}' >"$work/machine.json"
    export FAKE_NVML=$work AUTOCVD_CLAIM_DIR=$work/claims
    export AUTOCVD_NVML_LIB=$CARGO_TARGET_DIR/aarch64-unknown-linux-gnu/debug/libfake_nvml.so
    # Where Debian's libc6-arm64-cross puts its files.
    on_arm() { qemu-aarch64-static -L /usr/aarch64-linux-gnu "$program" "$@"; }
    [ "$(on_arm -o --no-claim)" = 2 ]
    [ "$(on_arm -n 2 -- /bin/sh -c 'echo "$CUDA_VISIBLE_DEVICES"')" = 1,2 ]
    on_arm status | grep -q '3 of 3 free'
    echo "check_wheel: the program of $(basename "$1") does what it should"
    exit
fi

cargo build --quiet -p fake-nvml
cp "$CARGO_TARGET_DIR/debug/libfake_nvml.so" "$work"
# The build writes beside its sources.
unset PYTHONPATH
python3 -m venv "$work/venv"
PATH=$work/venv/bin:$PATH
if (($#)); then
    wheel=$(realpath "$1")
else
    pip install --quiet --disable-pip-version-check build==1.6.1
    python -m build --outdir "$work/dist" . >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
    wheel=$(echo "$work"/dist/*.whl)
fi
pip install --quiet --disable-pip-version-check --no-deps "$wheel"

fail() {
    echo "check_wheel: $*" >&2
    exit 1
}
expect() {
    local expected=$1 got
    shift
    got=$("$@") || fail "'$*' ended in $?"
    [ "$got" = "$expected" ] || fail "'$*' printed '$got', not '$expected'"
}

program=$(command -v autocvd)
[ "$program" = "$work/venv/bin/autocvd" ] || fail "the program on PATH is $program"
[ "$(head -c 4 "$program")" = $'\x7fELF' ] || fail "$program is not a native program"

cd "$work"
echo '{"gpus": [{}, {}, {}]}' >machine.json
export FAKE_NVML=$work AUTOCVD_NVML_LIB=$work/libfake_nvml.so AUTOCVD_CLAIM_DIR=$work/claims
expect 2 autocvd -o --no-claim
expect 1,2 autocvd -n 2 -- sh -c 'echo "$CUDA_VISIBLE_DEVICES"'
# The launcher of that Python finds its program wherever PATH leads.
expect 0 env PATH=/usr/bin:/bin "$work/venv/bin/python" -m autocvd -o --no-claim --only 0
expect '[1, 2] 1,2 free' python -c '
import os, autocvd
ids = autocvd.autocvd(2)
print(ids, os.environ["CUDA_VISIBLE_DEVICES"], autocvd.status()["gpus"][0]["state"])'
expect "$(autocvd --version)" python -c 'import autocvd; print("autocvd", autocvd.__version__)'
expect "$(autocvd --version)" python -c 'import importlib.metadata as m; print("autocvd", m.version("autocvd"))'
expect '[2]' python -c 'import autocvd.auto; print(autocvd.auto.ids)'
python - <<END || fail "a part of the package is missing"
import autocvd, os
from importlib.metadata import entry_points
files = set(os.listdir(os.path.dirname(autocvd.__file__)))
extension = [name for name in files if name.startswith("_autocvd.") and name.endswith(".so")]
assert {"py.typed", "_autocvd.pyi", "types.py", "kernelspec.py", "pytest_plugin.py"} <= files and extension, files
points = entry_points()
plugins = points.select(group="pytest11") if hasattr(points, "select") else points["pytest11"]
assert "autocvd.pytest_plugin" in [one.value for one in plugins], plugins
END
# Where a user's own directory has it.
pip install --quiet --disable-pip-version-check --no-deps --target "$work/own" "$wheel"
pip uninstall --quiet --yes autocvd
expect 2 env PATH=/usr/bin:/bin PYTHONPATH="$work/own" "$work/venv/bin/python" -m autocvd -o --no-claim
echo "check_wheel: $(basename "$wheel") does what it should"

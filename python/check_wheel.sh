#!/usr/bin/env bash
# Builds the source distribution, from it the wheel, installs that into a fresh environment, and tries the program
# and the function from there on fake GPUs. With a wheel as argument it tries that one. Needs cargo and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --quiet -p fake-nvml
cp "$CARGO_TARGET_DIR/debug/libfake_nvml.so" "$work"
# The build writes beside its sources.
unset PYTHONPATH
python3 -m venv "$work/venv"
PATH=$work/venv/bin:$PATH
if (($#)); then
    wheel=$1
else
    pip install --quiet --disable-pip-version-check build
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
python - <<END || fail "the typing information is missing"
import autocvd, os
directory = os.path.dirname(autocvd.__file__)
assert {"py.typed", "_autocvd.pyi", "_autocvd.abi3.so"} <= set(os.listdir(directory)), os.listdir(directory)
END
echo "check_wheel: $(basename "$wheel") does what it should"

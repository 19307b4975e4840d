#!/usr/bin/env bash
# Lints, formats and types of the Python package: ruff, mypy --strict, pyright and stubtest, in pinned versions.
# Needs cargo and python3 from 3.10 on; the tools come from PyPI into target/python-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
pins=(mypy==2.4.1 pyright==1.1.414 pytest==9.2.0 ruff==0.17.6)

tools=$target/python-tools
if [ "$(cat "$tools/pins" 2>/dev/null)" != "${pins[*]}" ]; then
    python3 -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$tools/pins"
fi
PATH=$tools/bin:$PATH

ruff check
ruff format --check
mypy
MYPYPATH=python mypy --strict python/tests/typed_use.py
pyright

# stubtest imports the package, `autocvd.auto` included, which takes a GPU.
cargo build --quiet -p autocvd-python -p fake-nvml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r python/autocvd "$work"
cp "$target/debug/lib_autocvd.so" "$work/autocvd/_autocvd.abi3.so"
echo '{"gpus": [{}]}' >"$work/machine.json"
cat >"$work/allowed" <<'END'
# For type checkers alone.
autocvd\._progress\.Teller
autocvd\._allocation\.Role
# stubtest takes an alias of literals for a function.
autocvd\.types\.State
END
FAKE_NVML=$work AUTOCVD_NVML_LIB=$target/debug/libfake_nvml.so AUTOCVD_CLAIM_DIR=$work/claims \
    PYTHONPATH=$work PYTHONDONTWRITEBYTECODE=1 MYPYPATH=python \
    stubtest autocvd --mypy-config-file pyproject.toml --allowlist "$work/allowed"

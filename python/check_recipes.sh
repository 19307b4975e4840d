#!/usr/bin/env bash
# Tries the recipes of docs/python.md with the tools that they are for, in pinned versions: Jupyter, pytest-xdist,
# joblib, Optuna, Ray, Dask, Hydra and submitit. Needs cargo and python3 from 3.10 on; the tools come from PyPI into target/recipe-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
pins=(
    "dask[distributed]==2026.8.0" hydra-core==1.3.8 hydra-submitit-launcher==1.2.0 ipykernel==7.4.0 joblib==1.6.0
    jupyter_client==8.10.0 numpy optuna==5.0.0 pytest==9.2.0 pytest-xdist==3.8.0 ray==2.60.0 submitit==1.5.4
)

tools=$target/recipe-tools
if [ "$(cat "$tools/pins" 2>/dev/null)" != "${pins[*]}" ]; then
    python3 -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$tools/pins"
fi

cargo build --quiet -p autocvd -p autocvd-python -p fake-nvml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r python/autocvd "$work"
cp "$target/debug/lib_autocvd.so" "$work/autocvd/_autocvd.abi3.so"
export AUTOCVD_TEST_LIBRARY=$target/debug/libfake_nvml.so AUTOCVD_TEST_PROGRAM=$target/debug/autocvd
cd python/tests
# The tests of arguments and children use NumPy and joblib where they are installed.
PYTHONPATH=$work PYTHONDONTWRITEBYTECODE=1 "$tools/bin/python" -m unittest "$@" test_recipes test_arguments test_children

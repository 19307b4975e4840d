# The commands of CONTRIBUTING.md and .ci/run by name; `just` lists them.

[private]
default:
    @just --list

# All tests; no GPU needed
test *ARGS:
    cargo test {{ARGS}}

# What CI runs
ci:
    .ci/run

# Formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy --no-default-features -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --quiet

# The Python package: types, recipes, the wheel
python:
    python/check_types.sh
    python/check_recipes.sh
    python/check_wheel.sh

# All packages, with their checksums, into dist/
packages:
    packaging/all.sh

# Installs the packages, and runs the README's commands, in fresh roots of Debian
fresh-roots *ARGS:
    packaging/fresh_roots.sh {{ARGS}}

# Instructions of a start, beside their budget
budget:
    benches/budget.sh

# Times of launches, and their chart
bench:
    AUTOCVD_BENCH_RESULTS=benches/results/table.json cargo bench
    python3 benches/chart.py benches/results/table.json benches/results/latency.svg

# From the end of a process to the answer of a waiter
wake *ARGS:
    cargo build --release --workspace
    python3 benches/wake.py {{ARGS}}

# 600 launches, some killed; no two live ones on one GPU
stress:
    cargo test --release --test stress -- --ignored --nocapture

# The pictures of README.md, from the program's output
pictures:
    cargo build --workspace
    python3 docs/pictures/make.py

# Checks the program on a machine with a GPU
gpu-check:
    python3 benches/gpu_check.py

# Advisories, licences and duplicate versions of dependencies; needs cargo-deny and the network
deny:
    cargo deny check

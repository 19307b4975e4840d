#!/bin/sh
# budget.sh [PROGRAM]: fails where the release binary does more than it may at start-up.
# Instructions, as callgrind counts them, do not depend on the machine's speed or load: a regression
# shows at once. They are counted on a library whose calls cost next to nothing, with 8 idle GPUs.
set -eu
cd "$(dirname "$0")/.."

for tool in valgrind cc; do
    if ! command -v "$tool" >/dev/null; then
        echo "budget.sh: skipped: needs $tool"
        exit 0
    fi
done
target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
if [ $# -eq 0 ]; then
    cargo build --release --quiet
    set -- "$target/release/autocvd"
fi
program=$1
library=$target/bench-native/libfree_nvml.so
benches/native/build.sh "${library%/*}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A clean environment of a usual size: reading it is part of the work.
count() {
    env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 TERM=xterm USER=root SHELL=/bin/sh PWD=/ \
        LOGNAME=root AUTOCVD_NVML_LIB="$library" AUTOCVD_CLAIM_DIR="$work/claims-$1" \
        valgrind --tool=callgrind --callgrind-out-file="$work/$1" \
        "$program" -t 0 >"$work/stdout" 2>"$work/stderr" || {
        cat "$work/stderr" >&2
        exit 1
    }
    sed -n 's/^summary: //p' "$work/$1"
}

status=0
# check WHAT COUNT LIMIT
check() {
    echo "budget.sh: $2 instructions of at most $3: $1"
    [ "$2" -le "$3" ] || status=1
}

check 'autocvd -t 0, the first claim' "$(count first)" 1200000
# A lease belongs to the shell that asked, so this one lives on as that shell: what it becomes by exec
# without the variables ends the lease. The other shell's judge is asked about it, with more or fewer
# instructions as its answer comes later or sooner.
env -i PATH=/usr/bin:/bin AUTOCVD_NVML_LIB="$library" AUTOCVD_CLAIM_DIR="$work/claims-second" \
    sh -c '"$1" -t 0 >"$2" && { sleep 120; :; }' sh "$program" "$work/lease" &
other=$!
trap 'kill $other; rm -rf "$work"' EXIT
until [ -s "$work/lease" ]; do
    kill -0 $other || exit 1
    sleep 0.01
done
check 'autocvd -t 0, beside the lease of another shell' "$(count second)" 1300000
exit $status

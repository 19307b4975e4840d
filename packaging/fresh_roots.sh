#!/usr/bin/env bash
# Makes fresh roots by debootstrap, tries in each what a new user does, and prints a table.
#
#     packaging/fresh_roots.sh [--packages | --source] SUITE[=MIRROR]…
#
# --packages installs, uses and removes the .deb and the .rpm of dist/ (packaging/all.sh); --source runs the two
# commands of the README as an ordinary user, with the Rust of the distribution; without either, both. Suites
# are Debian's unless a MIRROR is named: noble=http://archive.ubuntu.com/ubuntu. Needs root, debootstrap and, for
# --packages, the fake NVML of `cargo build -p fake-nvml`. ROOTS is where the roots are (and stay, if it is set).
set -euo pipefail
cd "$(dirname "$0")/.."
what="packages source"
case ${1-} in
--packages | --source)
    what=${1#--}
    shift
    ;;
esac
(($#)) || set -- bookworm trixie testing
kept=${ROOTS-}
roots=${ROOTS:-$(mktemp -d)}
mkdir -p "$roots"
[ -n "$kept" ] || trap 'rm -rf --one-file-system "$roots"' EXIT
export LC_ALL=C.UTF-8

# in_root ROOT COMMAND…: with /proc, /dev and /run of its own, which go with the command.
in_root() {
    local root=$1
    shift
    unshare --mount --propagation private bash -euc '
        root=$1; shift
        # A mount point, as newer versions of rpm want / to be.
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t sysfs sys "$root/sys"
        mount -t tmpfs -o mode=755 run "$root/run"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
            chroot "$root" "$@"
    ' in_root "$root" "$@"
}

try_packages() {
    local root=$1 log=$1.packages.log lines
    rm -rf "$root/try"
    mkdir -p "$root/try"
    cp dist/autocvd_*_"$(dpkg --print-architecture)".deb dist/autocvd-*."$(uname -m)".rpm packaging/check_installed.sh \
        examples/desktop.json "${CARGO_TARGET_DIR:-target}/debug/libfake_nvml.so" "$root/try"
    if in_root "$root" bash /try/check_installed.sh >"$log" 2>&1; then
        lines=$(grep -c '^ok: ' "$log")
        echo "installed, used, upgraded, removed: $lines checks"
    else
        echo "FAILED: $(tail -n 1 "$log")"
    fi
}

try_source() {
    local root=$1 log=$1.source.log
    rm -rf "$root/home/tester/autocvd"
    mkdir -p "$root/home/tester/autocvd"
    git archive HEAD | tar -x -C "$root/home/tester/autocvd"
    cp /etc/ssl/certs/ca-certificates.crt "$root/home/tester/ca.crt"
    if in_root "$root" bash -eu >"$log" 2>&1 <<'INSIDE'
export HOME=/root
apt-get update -qq
# Debian 12 has a second Rust, which is renewed.
rust='rustc cargo'
minimum=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' /home/tester/autocvd/Cargo.toml | head -n 1)
candidate=$(apt-cache policy rustc | sed -n 's/^  Candidate: //p')
! dpkg --compare-versions "$candidate" lt "$minimum" || rust='rustc-web cargo-web'
apt-get install -y -qq --no-install-recommends $rust gcc libc6-dev ca-certificates >/dev/null
id tester >/dev/null 2>&1 || useradd --shell /bin/bash tester
chown -R tester /home/tester
rustc --version
gcc --version | head -n 1
ld --version | head -n 1
su - tester -c '
    export CARGO_HTTP_CAINFO=$HOME/ca.crt PATH=$HOME/.cargo/bin:$PATH CARGO_TERM_COLOR=never
    cd autocvd
    start=$SECONDS
    cargo install --path . && autocvd --from examples/desktop.json || exit
    echo "first: $((SECONDS - start)) s"
    start=$SECONDS
    cargo test --no-fail-fast
    status=$?
    echo "second: $((SECONDS - start)) s"
    exit $status
'
INSIDE
    then
        printf 'first command %s; ' "$(sed -n 's/^first: //p' "$log")"
    else
        printf 'FAILED; first command %s; ' "$(sed -n 's/^first: //p' "$log")"
    fi
    awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed; ", passed, failed }' "$log"
    echo "second $(sed -n 's/^second: //p' "$log"); $(grep -a 'skipped in this run' "$log" | tail -n 1)"
}

printf '| root | Rust | ld | tried | result |\n| --- | --- | --- | --- | --- |\n'
failed=0
for suite; do
    name=${suite%%=*}
    mirror=http://deb.debian.org/debian
    [ "$name" = "$suite" ] || mirror=${suite#*=}
    root=$roots/$name
    if ! [ -e "$root/etc/os-release" ] && ! debootstrap --variant=minbase "$name" "$root" "$mirror" >"$root.log" 2>&1; then
        echo "| $name | | | debootstrap | cannot be made: $(tail -n 1 "$root.log") |"
        failed=1
        continue
    fi
    # A mirror of testing may be weeks old.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/mirror"
    system=$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' "$root/etc/os-release")
    for one in $what; do
        result=$("try_$one" "$root") || true
        rust=$(sed -n 's/^rustc \([^ ]*\).*/\1/p' "$root.source.log" 2>/dev/null || true)
        linker=$(sed -n 's/^GNU ld.* //p' "$root.source.log" 2>/dev/null || true)
        echo "| $system | ${rust:-–} | ${linker:-–} | $one | $result |"
        case $result in *FAILED*) failed=1 ;; esac
    done
done
exit "$failed"

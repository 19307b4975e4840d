#!/usr/bin/env bash
# Run as root in a fresh root (fresh_roots.sh), with the packages and a fake NVML in /try: installs, uses, upgrades
# and removes the .deb, then the .rpm, and says what it saw.
set -euo pipefail
cd /try
fail() {
    echo "$*"
    exit 1
}
# expect WHAT EXPECTED COMMAND…
expect() {
    local what=$1 expected=$2 got
    shift 2
    got=$("$@" 2>&1) || fail "$what: '$*' ended in $?: $got"
    [[ $got = $expected ]] || fail "$what: '$*' printed '$got', not '$expected'"
    echo "ok: $what"
}
as_user() { su tester -s /bin/bash -c "$1"; }
# What a package may leave: what is there before and after.
files() {
    find / -xdev \( -path /proc -o -path /dev -o -path /try -o -path /tmp -o -path /var/cache -o -path /var/log -o \
        -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/rpm -o -path /home -o -path /root \) -prune -o -print | sort
    find /run -path '/run/autocvd*' | sort
}

apt-get update -qq
apt-get install -y -qq --no-install-recommends man-db bash-completion zsh fish rpm lintian >/dev/null 2>&1
id tester >/dev/null 2>&1 || useradd --create-home tester
echo '{"gpus": [{}, {}]}' >machine.json
mkdir -p procs
chmod -R a+rwX /try
# Nothing that was started here outlives a failure.
trap 'touch /try/release' EXIT
fake="FAKE_NVML=/try AUTOCVD_NVML_LIB=/try/libfake_nvml.so"

# use KIND: what users see of an installed package.
use() {
    expect "$1: the program" 'autocvd *' as_user 'autocvd --version'
    expect "$1: it decides" 'CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1' \
        as_user 'autocvd --from /try/desktop.json'
    expect "$1: the manual page" '*autocvd(1)*' as_user 'MANPAGER=cat man autocvd'
    expect "$1: bash completes" '*--num-gpus*' as_user '
        . /usr/share/bash-completion/bash_completion
        _comp_load autocvd 2>/dev/null || _completion_loader autocvd || true
        COMP_WORDS=(autocvd --) COMP_CWORD=1 COMP_LINE="autocvd --" COMP_POINT=10
        function=$(complete -p autocvd | sed "s/.*-F \([^ ]*\).*/\1/")
        $function autocvd -- autocvd
        echo "${COMPREPLY[*]}"'
    expect "$1: zsh completes" '_autocvd' as_user 'zsh -fc "autoload -U compinit; compinit -uD; echo \$_comps[autocvd]"'
    expect "$1: fish completes" '*--num-gpus*' as_user 'fish -c "complete -C \"autocvd --\""'
    expect "$1: the directory of claims" 'drwxrwxrwt root root' stat -c '%A %U %G' /run/autocvd
    expect "$1: a claim in it" '1 *.lock*' as_user "$fake autocvd -- sh -c 'echo \$CUDA_VISIBLE_DEVICES \$(ls /run/autocvd)'"
    expect "$1: licences" '*serde_json*' sh -c 'cat /usr/share/doc/autocvd/THIRD-PARTY-LICENSES /usr/share/licenses/autocvd/* 2>/dev/null || true'
}

# hold: a command holds one GPU and a shell the other one, until release.
hold() {
    rm -f /try/held-* /try/release
    as_user "$fake autocvd -- sh -c 'echo >/try/held-by-command; until [ -e /try/release ]; do sleep 0.1; done'" &
    as_user "export $fake
        eval \"\$(autocvd -s)\"
        echo >/try/held-by-shell
        until [ -e /try/release ]; do sleep 0.1; done" &
    for holder in command shell; do
        for _ in $(seq 600); do [ ! -e /try/held-by-$holder ] || continue 2; sleep 0.1; done
        fail "a $holder got no GPU"
    done
}
release() {
    touch /try/release
    wait
    # What held their claims ends with them.
    for _ in $(seq 600); do
        locked=
        for lock in /run/autocvd/*.lock; do
            ! grep -q ":$(stat -c %i "$lock") " /proc/locks || locked=yes
        done
        [ -n "$locked" ] || return 0
        sleep 0.1
    done
    fail "a claim did not end with its holder"
}

# What a run that failed has left.
dpkg --purge autocvd >/dev/null 2>&1
rpm --erase autocvd >/dev/null 2>&1 || true
rm -f /usr/local/share/zsh/site-functions/_autocvd
rmdir /usr/share/licenses /usr/share/zsh/site-functions 2>/dev/null || true
files >before
expect "lintian: no error and no warning" '' lintian --allow-root --fail-on error,warning ./*.deb
# The same package as an older version.
dpkg-deb -R ./*.deb older
sed -i 's/^Version: .*/Version: 0.0.1/' older/DEBIAN/control
dpkg-deb --build older /try/older.package >/dev/null
dpkg --install /try/older.package >/dev/null 2>&1
hold
apt-get install -y -qq ./*.deb >/dev/null 2>&1
expect "deb: an upgrade keeps claims" "*claimed by*4" as_user "$fake autocvd -q -t 0 -o; echo \$?"
dpkg --remove autocvd >/dev/null 2>&1
expect "deb: removed beside a running launch, the claims stay" '*.lock*' ls /run/autocvd
release
apt-get install -y -qq ./*.deb >/dev/null 2>&1
use deb
dpkg --purge autocvd >/dev/null 2>&1
files >after
expect "deb: nothing is left" '' diff before after

# Debian's rpm knows nothing of the packages of this root: that is what --nodeps is for.
rpm --install --nodeps ./*.rpm 2>&1
# Where Fedora's zsh looks.
expect "rpm: zsh's file" '#compdef autocvd*' cat /usr/share/zsh/site-functions/_autocvd
mkdir -p /usr/local/share/zsh/site-functions
ln -s /usr/share/zsh/site-functions/_autocvd /usr/local/share/zsh/site-functions/_autocvd
use rpm
rm /usr/local/share/zsh/site-functions/_autocvd
expect "rpm: its list of files" '*/usr/lib/tmpfiles.d/autocvd.conf*' rpm -ql autocvd
rpm --erase autocvd
# On Fedora these are other packages'.
rmdir --ignore-fail-on-non-empty /usr/share/licenses /usr/share/zsh/site-functions
files >after
expect "rpm: nothing is left" '' diff before after

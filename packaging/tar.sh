#!/usr/bin/env bash
# Packs what program.sh built into dist/autocvd-VERSION-MACHINE-linux.tar.gz, as packed by every machine.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh
name=autocvd-$version-$machine-linux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "target/packages/$machine" "$work/$name"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
    gzip -n9 >"$dist/$name.tar.gz"
echo "dist/$name.tar.gz"

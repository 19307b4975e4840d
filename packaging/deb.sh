#!/usr/bin/env bash
# Packs what program.sh built into dist/autocvd_VERSION_ARCHITECTURE.deb. DEBFULLNAME and DEBEMAIL name who
# builds it. Needs cargo; cargo-deb is installed from crates.io.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/setup.sh
need_tool cargo-deb 3.8.0
maintainer="${DEBFULLNAME:-autocvd developers} <${DEBEMAIL:-autocvd@packages.invalid}>"
ln -sfn "$machine" target/packages/current

gzip -n9 >target/packages/changelog.gz <<CHANGES
autocvd ($version) unstable; urgency=medium

  * Version $version; CHANGELOG.md says what it is.

 -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")
CHANGES
case $machine in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$machine ;;
esac
deb=$dist/autocvd_${version}_$arch.deb
cargo-deb --quiet --no-build --no-strip --no-dbgsym --deb-revision "" \
    --target "$machine-unknown-linux-gnu" --maintainer "$maintainer" --output "$deb" >/dev/null
echo "dist/$(basename "$deb")"

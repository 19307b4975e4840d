#!/bin/sh
# build.sh DIRECTORY: makes floor, usage and libfree_nvml.so there. Needs a C compiler.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
# All the functions of NVML that the program's binding looks up: tests/fake-nvml has them all.
# Where free_nvml.c has one of its own, the linker takes that.
{
    echo '#define STUB(name) __attribute__((weak)) int name(void) { return 3; /* not supported */ }'
    fake=$here/../../tests/fake-nvml/src
    sed 's@//.*@@' "$fake/stubs.rs" "$fake/api.rs" |
        grep -o '\bnvml[A-Z][A-Za-z0-9_]*' | sort -u | sed 's/.*/STUB(&)/'
} >"$out/stubs.c"
# Built beside and renamed: a library that a program has loaded must not change under it.
cc -O2 -Wall -Wextra -o "$out/floor.new" "$here/floor.c" -ldl
cc -O2 -Wall -Wextra -o "$out/usage.new" "$here/usage.c"
cc -O2 -Wall -Wextra -shared -fPIC -o "$out/libfree_nvml.so.new" "$here/free_nvml.c" "$out/stubs.c"
for name in floor usage libfree_nvml.so; do
    mv "$out/$name.new" "$out/$name"
done

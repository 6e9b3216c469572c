#!/bin/sh
# Builds the fuzzer of the JSON kernel with AddressSanitizer and UBSan, and runs it.
#
#   tests/fuzz/run.sh SECONDS [SEED [ITERATION]]      CXX chooses the compiler, FUZZ_BUILD the folder of the program
#
# The seconds are those of the processor. The last line is JSON; the first error of any kind ends it with a status that is not 0, and names
# seed and iteration.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
build=${FUZZ_BUILD:-$root/build/fuzz}
mkdir -p "$build"
"${CXX:-c++}" -std=c++17 -O1 -g -Wall -Wextra -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -D_GLIBCXX_ASSERTIONS -I"$root/sabot/_cython" -o "$build/json_fuzz" "$here/json_fuzz.cc"
UBSAN_OPTIONS=print_stacktrace=1 exec "$build/json_fuzz" "${1:-5}" "${2:-1}" ${3:+"$3"}

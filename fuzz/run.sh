#!/usr/bin/env bash
# Fuzzes every target for so long, and says what came of it.
#
# Usage: fuzz/run.sh SECONDS [TARGET...]
#
# What it needs it installs: cargo-fuzz, pinned; a nightly compiler has to be there (rustup toolchain install
# nightly). It starts from the seeds beside it and keeps what it finds outside the checkout, so that the next run
# goes on from there. An input that crashes a target is kept in fuzz/artifacts/TARGET: mend what it shows, and
# make a test of it. No sanitizer: the project has no unsafe code, and without one twice as much is tried.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=e2e/env.sh
. e2e/env.sh
CARGO_FUZZ=0.13.2

case ${1:-} in '' | *[!0-9]*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;; esac
seconds=$1
shift
targets=("$@")
((${#targets[@]})) || targets=(mbap rtu spool records)

nightly=$(rustup toolchain list | sed -n 's/^\(nightly[^ ]*\).*/\1/p' | head -n 1)
[ -n "$nightly" ] || { echo "there is no nightly compiler: rustup toolchain install nightly --profile minimal" >&2; exit 1; }
# The flags of the project's own builds do not go together with the fuzzer's.
unset CARGO_BUILD_TARGET "${!CARGO_TARGET_@}"
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$CORRENTE_CACHE/fuzz/target}
if [ "$(cargo-fuzz --version 2>/dev/null)" != "cargo-fuzz $CARGO_FUZZ" ]; then
  cargo "+$nightly" install -q --locked --root "$CORRENTE_CACHE" --version "$CARGO_FUZZ" cargo-fuzz
fi
cargo "+$nightly" fuzz build -s none

# Spools are opened and synced thousands of times: in memory, where there is such a folder.
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
table=() failed=0
for target in "${targets[@]}"; do
  corpus=$CORRENTE_CACHE/fuzz/corpus/$target log=$CORRENTE_CACHE/fuzz/$target.log
  mkdir -p "$corpus" "fuzz/artifacts/$target"
  before=$(find "fuzz/artifacts/$target" -type f | wc -l)
  echo "=== $target, $seconds s" >&2
  nice -n 10 cargo "+$nightly" fuzz run -s none "$target" "$corpus" "fuzz/seeds/$target" -- \
    -max_total_time="$seconds" -timeout=10 -max_len=4096 -print_final_stats=1 >"$log" 2>&1 || failed=1
  crashes=$(($(find "fuzz/artifacts/$target" -type f | wc -l) - before))
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
  covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)
  table+=("$(printf '| %-8s | %11s | %8s | %8s | %7s |' "$target" "$(stat number_of_executed_units)" \
    "$(stat average_exec_per_sec)" "${covered:-?}" "$crashes")")
  ((crashes == 0)) || { failed=1; tail -n 30 "$log" >&2; }
done
echo "| target   |  executions | each sec | coverage | crashes |"
echo "|----------|-------------|----------|----------|---------|"
printf '%s\n' "${table[@]}"
exit "$failed"

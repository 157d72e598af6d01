#!/bin/bash
# Measure the poller beside Telegraf, on the same simulated meters and the same broker.
#
#   bench/poller.sh              all shapes, about 20 minutes
#   bench/poller.sh a d          these shapes alone; see README.md
#   SECONDS_EACH=20 ROUNDS=1 bench/poller.sh a     quicker, and less sure
#   PROFILE=release bench/poller.sh                instead of dist, which releases are built with
#
# Writes results/poller.json, and from it results/poller.md. Needs root on Debian, for the
# packet times, and Rust and Go; everything else is installed once into the cache.
set -euo pipefail
BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Set for a worktree's own target folder; env.sh would name the common one.
target=${CARGO_TARGET_DIR:-}
# shellcheck source=e2e/lib.sh
source "$BENCH/../e2e/lib.sh"
[ -z "$target" ] || export CARGO_TARGET_DIR=$target

TELEGRAF=1.37.2
CONFLUENT_KAFKA=2.16.1
XXHASH=3.6.0
PROFILE=${PROFILE:-dist}

[ "$(id -u)" = 0 ] || fail "the times of packets are asked of the kernel: run as root"
command -v cargo >/dev/null || fail "Rust is not installed: see https://rustup.rs"
command -v go >/dev/null || fail "Telegraf is built from source: install Go 1.26 or later (https://go.dev/dl) and put it on PATH"

# Two runs at a time would use the same ports and folders, and each other's processor time.
mkdir -p "$CORRENTE_CACHE"
exec 9>"$CORRENTE_CACHE/bench.lock"
flock -n 9 || { say "another run is under way; waiting for it"; flock 9; }

# The two plugins that are compared and nothing else, which is the smallest Telegraf there is.
build_telegraf() {
  GOBIN=$1 CGO_ENABLED=0 GOFLAGS='-buildvcs=false' go install -trimpath -ldflags "-s -w" \
    -tags custom,inputs.modbus,outputs.kafka,serializers.json,serializers.influx \
    "github.com/influxdata/telegraf/cmd/telegraf@v$TELEGRAF"
}

install_python() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install -q --no-deps --disable-pip-version-check \
    "confluent-kafka==$CONFLUENT_KAFKA" "xxhash==$XXHASH"
}

[ -e "$CORRENTE_CACHE/stamps/kafka" ] || "$E2E/install.sh" servers
once_program telegraf "$TELEGRAF" build_telegraf
once_tree bench-python "confluent-kafka $CONFLUENT_KAFKA, xxhash $XXHASH, $(python3 -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')" install_python

cd "$ROOT"
say "building the $PROFILE binaries ..."
cargo build --profile "$PROFILE" --locked -p corrente-poller -p corrente-simulator
BENCH_BINARIES=$CARGO_TARGET_DIR/${CARGO_BUILD_TARGET:-}/$PROFILE

export BENCH BENCH_BINARIES PROFILE TELEGRAF
export PYTHONPATH=$BENCH PYTHONDONTWRITEBYTECODE=1
exec "$CORRENTE_CACHE/bench-python/bin/python" -m poller "$@"
